"""The building blocks that the families share: embedding, norms, attention, feed-forward, head.

They take the tensor table and the spec, check every tensor that they use (presence, shape, type), and add
unfused ops to a graph whose types are inferred op by op. They never read weight data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from forgec.errors import GGUFError, UnsupportedModelError
from forgec.frontend.gguf import TensorInfo
from forgec.frontend.rope import RopeSpec
from forgec.frontend.spec import ModelSpec
from forgec.ir import ops
from forgec.ir.graph import Graph, Node, Value
from forgec.ir.shapes import EXECUTABLE_TYPES, infer
from forgec.ir.verify import verify

__all__ = ["AttentionForm", "LayerBuilder", "ModelBuilder", "TensorTable"]

T = TypeVar("T")

#: Types that are decoded to f32 when they are packed.
FLOATS = ("f32", "f16", "bf16")


class TensorTable(Protocol):
    """What the builders need of a GGUF file."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...


@dataclass(frozen=True)
class AttentionForm:
    """What varies between the attentions of the families.

    ``rope``: the rotation of q and k, None for none. ``scale`` of the scores, None for 1/sqrt(key_length);
    ``window``, ``softcap``, ``alibi`` as in ``ops.Attention``; ``clamp`` bounds q, k and v, 0 for not.
    ``qk_norm``: how q and k are normed, by weights "attn_q_norm" and "attn_k_norm": "head" with one weight
    for all heads, "heads" with one each, "row" the whole projection, "" not.
    """

    rope: RopeSpec | None
    scale: float | None = None
    window: int = 0
    softcap: float = 0.0
    alibi: float = 0.0
    clamp: float = 0.0
    qk_norm: str = ""


class ModelBuilder:
    """A graph in the making: what belongs to no layer, and the ``layer`` builders.

    ``norm``: the kind of the family's norms: "rms"; "layer", with "<name>.bias" where the file has it; or
    "bare", LayerNorm without any parameters.
    Node names are deterministic ("embedding", "layer0.attn_norm", "output"); the value of a node with one
    output bears the node's name, a weight that of its tensor.
    """

    def __init__(self, gguf: TensorTable, spec: ModelSpec, *, norm: str = "rms") -> None:
        self.spec = spec
        self.norm_kind = norm
        self.graph = Graph(spec)
        self._tensors = gguf.tensors
        self._used: set[str] = set()
        self._tables: dict[RopeSpec, Value] = {}

    def embedding(self, scale: float = 1.0, positions: bool = False) -> Value:
        """f32[rows, E] from the tokens of the step, with learned positions added where there are some."""
        spec = self.spec
        tokens = self.graph.declare(Value("tokens", ("rows",), "i32", "input"))
        weight = self.matrix("token_embd.weight", spec.vocab_size, spec.embedding_length)
        learned = (
            (self.table("position_embd.weight", (spec.context_length, spec.embedding_length)),)
            if positions
            else ()
        )
        return self.op("embedding", ops.Embedding(scale), tokens, weight, *learned)

    def layer(self, layer: int) -> LayerBuilder:
        """The builder of one layer."""
        return LayerBuilder(self, layer)

    def norm(self, name: str, x: Value, prefix: str = "", layer: int | None = None) -> Value:
        """The family's norm, with the weight "<prefix>.weight" (default: the name)."""
        prefix, length, eps = prefix or name, int(x.shape[-1]), self.spec.norm_epsilon
        if self.norm_kind == "bare":
            return self.op(name, ops.LayerNorm(eps, weight=False, bias=False), x, layer=layer)
        weight = self.vector(f"{prefix}.weight", length, layer)
        if self.norm_kind == "rms":
            return self.op(name, ops.RMSNorm(eps), x, weight, layer=layer)
        bias = self.bias(prefix, length, layer)
        return self.op(name, ops.LayerNorm(eps, weight=True, bias=bool(bias)), x, weight, *bias, layer=layer)

    def head(self, x: Value, then: ops.Pointwise | None = None) -> Graph:
        """Norm, output matrix, ``then`` on the logits, and sampler, all on the selected row.

        Returns the finished, verified graph.
        """
        spec = self.spec
        x = self.norm("output_norm", self.op("select_row", ops.SelectRow(), x))
        tensor = "token_embd.weight" if spec.tied_embeddings else "output.weight"
        weight = self.matrix(tensor, spec.vocab_size, spec.embedding_length)
        bias = self.bias("output", spec.vocab_size)
        if then is None:
            logits = self.op("output", ops.Linear(), x, weight, *bias, value="logits")
        else:
            logits = self.op("output", ops.Linear(), x, weight, *bias)
            logits = self.op("logits", then, logits)
        token = self.op("sample", ops.Sample(), logits, value="token")
        self.graph.outputs = (logits.name, token.name)
        self._check_all_used()
        return verify(self.graph)

    def required(self, key: str, value: T | None) -> T:
        """``value``, or an error that names the metadata key that would have given it."""
        if value is None:
            raise GGUFError(
                f"the metadata key '{self.spec.architecture}.{key}' is missing",
                f"A '{self.spec.architecture}' model needs it; convert the model again from its original.",
            )
        return value

    # -- ops

    def op(self, name: str, op: ops.Op, *inputs: Value, layer: int | None = None, value: str = "") -> Value:
        """Add an op with one output, called ``value`` or else like the node."""
        ((shape, dtype),) = infer(name, op, inputs)
        output = Value(value or name, shape, dtype, layer=layer)
        node = Node(name, op, tuple(v.name for v in inputs), (output.name,), layer)
        self.graph.add(node, output)
        return output

    # -- tensors

    def has(self, tensor: str) -> bool:
        """Whether the file has a tensor of this name."""
        return tensor in self._tensors

    def matrix(
        self, tensor: str, rows: int, cols: int, layer: int | None = None, part: tuple[int, int] | None = None
    ) -> Value:
        """A weight matrix of the file, checked; declared once however often it is used.

        ``part`` (first, count) takes only these of its rows.
        """
        return self._weight(tensor, (rows, cols), EXECUTABLE_TYPES, layer, part)

    def vector(
        self, tensor: str, length: int, layer: int | None = None, part: tuple[int, int] | None = None
    ) -> Value:
        """A norm weight or bias of the file, f32; ``part`` (first, count) takes only these elements."""
        return self._weight(tensor, (length,), ("f32",), layer, part)

    def stack(self, tensor: str, shape: tuple[int, ...], layer: int | None = None) -> Value:
        """A tensor of one weight matrix for each expert or head, [count, rows, cols]."""
        return self._weight(tensor, shape, EXECUTABLE_TYPES, layer)

    def table(self, tensor: str, shape: tuple[int, ...], layer: int | None = None) -> Value:
        """A tensor of any rank that is read as f32, whatever float type the file has."""
        return self._weight(tensor, shape, FLOATS, layer)

    def rope_table(self, rope: RopeSpec) -> Value:
        """The table of angles of a rotation, one for all layers that share it."""
        if rope not in self._tables:
            half = rope.dimension_count // 2
            for factors in (rope.freq_factors, rope.long_factors):
                if factors is not None:
                    self._tensor(factors, (half,))
            name = "rope_table" + (f".{len(self._tables)}" if self._tables else "")
            shape = ("context", half, 2)
            self._tables[rope] = self.graph.declare(
                Value(name, shape, "f32", "constant", tensor=rope.freq_factors, rope=rope)
            )
        return self._tables[rope]

    def bias(
        self, prefix: str, length: int, layer: int | None = None, part: tuple[int, int] | None = None
    ) -> tuple[Value, ...]:
        """The tensor "<prefix>.bias" (or a ``part`` of it) where the file has it, else nothing."""
        tensor = f"{prefix}.bias"
        return (self.vector(tensor, length, layer, part),) if self.has(tensor) else ()

    def _weight(
        self,
        tensor: str,
        shape: tuple[int, ...],
        types: tuple[str, ...],
        layer: int | None,
        part: tuple[int, int] | None = None,
    ) -> Value:
        first, count = part or (0, shape[0])
        name = tensor if part is None else f"{tensor}[{first}:{first + count}]"
        declared = self.graph.values.get(name)
        if declared is not None:
            return declared
        info = self._tensor(tensor, shape)
        dtype = info.type.name.lower()
        if dtype not in types:
            raise UnsupportedModelError(
                f"tensor '{tensor}' has type {info.type.name}; expected {_types(types)}",
                f"Quantise the model to one of {_types(EXECUTABLE_TYPES)}, for example with llama-quantize.",
            )
        if types is FLOATS:
            dtype = "f32"  # decoded when it is packed
        return self.graph.declare(
            Value(name, (count, *shape[1:]), dtype, "weight", tensor=tensor, layer=layer, first_row=first)
        )

    def _tensor(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        info = self._tensors.get(name)
        if info is None:
            raise GGUFError(
                f"tensor '{name}' of shape {list(shape)} is missing",
                f"A '{self.spec.architecture}' model needs it; convert the model again from its original.",
            )
        if info.shape != shape:
            raise GGUFError(
                f"tensor '{name}' has shape {list(info.shape)}; expected {list(shape)} from the metadata"
            )
        self._used.add(name)
        return info

    def _check_all_used(self) -> None:
        # A tensor that the graph does not use would be left out of the computation without a word.
        unused = [name for name in self._tensors if name not in self._used]
        if unused:
            more = f" (and {len(unused) - 1} more)" if len(unused) > 1 else ""
            raise UnsupportedModelError(
                f"tensor '{unused[0]}'{more} has no place in architecture '{self.spec.architecture}'",
                "The model is a variant (mixture of experts, adapters, ...) that is not supported.",
            )


class LayerBuilder:
    """The blocks of one layer. Tensors are called "blk.<layer>.<name>", nodes "layer<layer>.<name>"."""

    def __init__(self, model: ModelBuilder, layer: int) -> None:
        self.model = model
        self.layer = layer

    def op(self, name: str, op: ops.Op, *inputs: Value) -> Value:
        """Add an op with one output to this layer."""
        return self.model.op(f"layer{self.layer}.{name}", op, *inputs, layer=self.layer)

    def add(self, name: str, a: Value, b: Value) -> Value:
        """a + b: the residual stream and what a block adds to it."""
        return self.op(name, ops.Add(), a, b)

    def has(self, tensor: str) -> bool:
        """Whether the layer has a tensor of this name."""
        return self.model.has(f"blk.{self.layer}.{tensor}")

    def scaled(self, name: str, x: Value, factor: float | None) -> Value:
        """x times a factor; x itself where there is none."""
        return x if factor is None else self.op(name, ops.Scale(factor), x)

    def norm(self, name: str, x: Value) -> Value:
        """The family's norm with the weight "<name>.weight"."""
        return self.model.norm(f"layer{self.layer}.{name}", x, f"blk.{self.layer}.{name}", self.layer)

    def linear(
        self, name: str, x: Value, out: int, node: str = "", part: tuple[int, int] | None = None
    ) -> Value:
        """Product with "<name>.weight" of ``out`` rows, plus "<name>.bias" where the file has it.

        ``part`` (first, count) takes only these rows of both; ``node`` is then the name of the product.
        """
        prefix = f"blk.{self.layer}.{name}"
        weight = self.model.matrix(f"{prefix}.weight", out, int(x.shape[-1]), self.layer, part)
        bias = self.model.bias(prefix, out, self.layer, part)
        return self.op(node or name, ops.Linear(), x, weight, *bias)

    def linears(self, fused: str, x: Value, parts: Mapping[str, int]) -> list[Value]:
        """Products of x, name to rows: with matrices of their own, or with the rows of ``fused`` in order."""
        if not self.has(f"{fused}.weight"):
            return [self.linear(name, x, rows) for name, rows in parts.items()]
        total, first, made = sum(parts.values()), 0, []
        for name, rows in parts.items():
            made.append(self.linear(fused, x, total, name, (first, rows)))
            first += rows
        return made

    def attention(self, x: Value, form: AttentionForm) -> Value:
        """Grouped-query attention over the cache: x f32[rows, E] -> f32[rows, E].

        The projections are "attn_q", "attn_k" and "attn_v", or the rows of "attn_qkv" in this order; sinks
        are taken where the file has them.
        """
        spec = self.model.spec
        heads, kv_heads, length = spec.head_count, spec.head_count_kv, spec.key_length
        if length != spec.value_length:
            raise UnsupportedModelError(
                f"keys of {length} and values of {spec.value_length} elements per head are not supported; "
                f"both lengths must be equal"
            )
        widths = {"attn_q": heads * length, "attn_k": kv_heads * length, "attn_v": kv_heads * length}
        q, k, v = self.linears("attn_qkv", x, widths)
        if form.clamp:
            clamp = ops.Clamp(form.clamp)
            q, k, v = (self.op(f"attn_{n}_clamp", clamp, y) for n, y in zip("qkv", (q, k, v), strict=True))
        if form.qk_norm:
            q = self._qk_norm("attn_q_norm", q, heads, form.qk_norm)
            k = self._qk_norm("attn_k_norm", k, kv_heads, form.qk_norm)
        if form.rope is not None:
            q = self._rope("attn_q_rope", q, heads, form.rope)
            k = self._rope("attn_k_rope", k, kv_heads, form.rope)
        k_cache, v_cache = self._append(k, v)
        scores = self.op("attn_qk", ops.QK(heads, kv_heads, length), q, k_cache)
        scale = 1.0 / math.sqrt(length) if form.scale is None else form.scale
        scores = self.op("attn_scale", ops.Scale(scale), scores)
        if form.softcap:
            scores = self.op("attn_softcap", ops.SoftCap(form.softcap), scores)
        scores = self.op("attn_mask", ops.Mask(causal=True, window=form.window, alibi=form.alibi), scores)
        sinks = f"blk.{self.layer}.attn_sinks.weight"
        extra = (self.model.vector(sinks, heads, self.layer),) if self.model.has(sinks) else ()
        scores = self.op("attn_softmax", ops.Softmax(sinks=bool(extra)), scores, *extra)
        mixed = self.op("attn_weighted_v", ops.WeightedV(heads, kv_heads, length), scores, v_cache)
        return self.linear("attn_output", mixed, spec.embedding_length)

    def gated(self, x: Value, activation: ops.Pointwise) -> Value:
        """down(activation(gate(x)) * up(x)): x f32[rows, E] -> f32[rows, E].

        Without "ffn_gate" the rows of "ffn_up" are those of the gate, then those of up.
        """
        spec = self.model.spec
        rows = {"ffn_gate": spec.feed_forward_length, "ffn_up": spec.feed_forward_length}
        if self.has("ffn_gate.weight"):
            gate, up = (self.linear(name, x, count) for name, count in rows.items())
        else:
            gate, up = self.linears("ffn_up", x, rows)
        gated = self.op("ffn_mul", ops.Mul(), self._activated(activation, gate), up)
        return self.linear("ffn_down", gated, spec.embedding_length)

    def plain(self, x: Value, activation: ops.Pointwise) -> Value:
        """down(activation(up(x))): x f32[rows, E] -> f32[rows, E]."""
        spec = self.model.spec
        up = self.linear("ffn_up", x, spec.feed_forward_length)
        return self.linear("ffn_down", self._activated(activation, up), spec.embedding_length)

    def _activated(self, activation: ops.Pointwise, x: Value) -> Value:
        return self.op(f"ffn_{type(activation).__name__.lower()}", activation, x)

    def _qk_norm(self, name: str, x: Value, heads: int, span: str) -> Value:
        spec, tensor = self.model.spec, f"blk.{self.layer}.{name}.weight"
        if span == "row":
            weight = self.model.vector(tensor, int(x.shape[-1]), self.layer)
            return self.op(name, ops.RMSNorm(spec.norm_epsilon), x, weight)
        shape = (spec.key_length,) if span == "head" else (heads, spec.key_length)
        weight = self.model.table(tensor, shape, self.layer)
        centred = self.model.norm_kind != "rms"
        return self.op(name, ops.HeadNorm(heads, spec.norm_epsilon, centred), x, weight)

    def _rope(self, name: str, x: Value, heads: int, rope: RopeSpec) -> Value:
        length = self.model.spec.key_length
        turn = ops.Rope(heads, length, rope.dimension_count, rope.interleaved)
        return self.op(name, turn, x, self.model.rope_table(rope))

    def _append(self, k: Value, v: Value) -> tuple[Value, Value]:
        """Declare the layer's caches and append to them."""
        spec, graph = self.model.spec, self.model.graph
        shape = (spec.head_count_kv, "context", spec.key_length)
        k_cache, v_cache = (
            graph.declare(Value(f"kv.{kind}.{self.layer}", shape, "f32", "state", layer=self.layer))
            for kind in ("k", "v")
        )
        outputs = (k_cache.next_version(), v_cache.next_version())
        node = Node(
            f"layer{self.layer}.kv_append",
            ops.KVAppend(spec.head_count_kv, spec.key_length),
            (k.name, v.name, k_cache.name, v_cache.name),
            tuple(value.name for value in outputs),
            self.layer,
        )
        graph.add(node, *outputs)
        return outputs


def _types(types: tuple[str, ...]) -> str:
    return ", ".join(name.upper() for name in types)
