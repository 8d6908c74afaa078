"""One graph being lowered: virtual addresses, and what every rule may ask for.

Rules turn nodes into ``Lowered`` launches over ``Temp`` addresses; liveness and real offsets come later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from forgec.errors import VerifyError
from forgec.ir.graph import Graph, Node
from forgec.plan.kvcache import CacheRows
from forgec.plan.layouts import FORMATS
from forgec.plan.memory import align
from forgec.plan.program import Argument, CompileOptions, PackedTensor, Ref
from forgec.plan.stages import StageParams
from forgec.plan.stages.cache import KVCache
from forgec.plan.tuning import Tuning
from forgec.targets import Target

__all__ = ["STATE", "Arguments", "Lowered", "Lowering", "Temp", "sync_bytes"]

STATE = Ref("state", 0)
Arguments = tuple["Argument | Temp", ...]


def sync_bytes(graph: Graph) -> int:
    """Bytes of the buffer of counters: one for each KV head, and one for all other stages at its end."""
    heads = (value.shape[0] for value in graph.of_kind("state"))
    return align(4 * (max((n for n in heads if isinstance(n, int)), default=0) + 1))


@dataclass(frozen=True)
class Temp:
    """A temporary in the arena: its size in bytes, and the temporary whose storage it takes over."""

    name: str
    bytes: int
    alias: str = ""


@dataclass(frozen=True)
class Lowered:
    """One launch before addresses are known."""

    kernel: StageParams
    grid: int
    args: tuple[Argument | Temp, ...]
    note: str


@dataclass
class Lowering:
    """The one graph being lowered; collects the temporaries that the rules ask for."""

    graph: Graph
    target: Target
    options: CompileOptions
    tensors: Mapping[str, PackedTensor]
    caches: Mapping[str, CacheRows]
    decode: bool
    temps: dict[str, Temp] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Most rows of activations that a step carries."""
        return 1 if self.decode else self.options.chunk

    @property
    def context(self) -> int:
        if self.options.context is None:
            raise VerifyError("lowering needs a context length")
        return self.options.context

    def temp(self, name: str, size: int, alias: str = "") -> Temp:
        """Declare (or find) a temporary of ``size`` bytes."""
        return self.temps.setdefault(name, Temp(name, size, alias))

    def value(self, name: str, alias: str = "") -> Temp:
        """The temporary of a graph value of shape ["rows", features], float32."""
        return self.temp(name, 4 * self.width(name) * self.rows, alias)

    def width(self, name: str) -> int:
        """Features of a graph value: its last dimension."""
        features = self.graph.values[name].shape[-1]
        if not isinstance(features, int):
            raise VerifyError(f"value '{name}' has no fixed width: {features}")
        return features

    def planes(self, name: str) -> tuple[Ref, ...]:
        """The address of a weight or constant, as the arguments that it makes."""
        return (Ref("weights", self.tensors[name].offset),)

    def cache(self, name: str) -> Ref:
        """Address of a layer's K or V cache (any SSA version of it)."""
        return Ref("kv", self.cache_rows(name).offset)

    def cache_rows(self, name: str) -> CacheRows:
        """Size of a layer's K or V cache (any SSA version of it)."""
        return self.caches[self.graph.values[name].root]

    def kv_cache(self, *names: str, value_length: int) -> KVCache:
        """What stages know of a layer's caches: K and V, or one, in which values are a prefix of keys."""
        k = self.cache_rows(names[0])
        dtype, ring = self.options.kv_dtype, k.window > 0
        return KVCache(k.kv_heads, k.length, value_length, k.positions, dtype, ring, v_from_k=len(names) < 2)

    @property
    def counter(self) -> Ref:
        """A word for stages that find out which block is last, zero between launches."""
        return Ref("sync", sync_bytes(self.graph) - 4)

    def is_last_user(self, node: Node, value: str) -> bool:
        """Whether every other node that reads a value runs before ``node``."""
        users = {user.name for user in self.graph.users(value)}
        return [n.name for n in self.graph.topo() if n.name in users][-1] == node.name

    def common(self, tuning: Tuning) -> tuple[str, int, int]:
        """The fields every stage begins with: family, wave width, threads of a block."""
        return self.target.family, self.target.wave, tuning.block or self.target.block_size

    def act(self, formats: Iterable[str]) -> str:
        """Activations of a product: int8 in fast math where dot4 exists and every weight comes in blocks."""
        quantised = all(FORMATS[name].block > 1 for name in formats)
        return "q8" if self.options.math == "fast" and quantised and self.target.dot else "f32"
