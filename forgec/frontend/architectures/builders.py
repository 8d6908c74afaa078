"""The building blocks that the families share: embedding, attention, feed-forward, head.

They take the tensor table and the spec, check every tensor that they use (presence, shape, type), and add
unfused ops to a graph whose types are inferred op by op. They never read weight data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

from forgec.errors import GGUFError, UnsupportedModelError
from forgec.frontend.gguf import TensorInfo
from forgec.frontend.spec import ModelSpec
from forgec.ir import ops
from forgec.ir.graph import Graph, Node, Value
from forgec.ir.shapes import EXECUTABLE_TYPES, infer
from forgec.ir.verify import verify

__all__ = ["LayerBuilder", "ModelBuilder", "TensorTable"]


class TensorTable(Protocol):
    """What the builders need of a GGUF file."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...


class ModelBuilder:
    """A graph in the making: what belongs to no layer, and the ``layer`` builders.

    Node names are deterministic ("embedding", "layer0.attn_norm", "output"); the value of a node with one
    output bears the node's name, a weight that of its tensor.
    """

    def __init__(self, gguf: TensorTable, spec: ModelSpec) -> None:
        self.spec = spec
        self.graph = Graph(spec)
        self._tensors = gguf.tensors
        self._used: set[str] = set()
        if spec.key_length != spec.value_length:
            raise UnsupportedModelError(
                f"keys of {spec.key_length} and values of {spec.value_length} elements per head are not "
                f"supported; both lengths must be equal"
            )
        self.rope_table = self._rope_table()

    def embedding(self, scale: float = 1.0) -> Value:
        """f32[rows, E] from the tokens of the step."""
        tokens = self.graph.declare(Value("tokens", ("rows",), "i32", "input"))
        weight = self.matrix("token_embd.weight", self.spec.vocab_size, self.spec.embedding_length)
        return self.op("embedding", ops.Embedding(scale), tokens, weight)

    def layer(self, layer: int) -> LayerBuilder:
        """The builder of one layer."""
        return LayerBuilder(self, layer)

    def head(self, x: Value) -> Graph:
        """Norm, output matrix and sampler on the selected row; returns the finished, verified graph."""
        spec = self.spec
        x = self.op("select_row", ops.SelectRow(), x)
        norm = self.vector("output_norm.weight", spec.embedding_length)
        x = self.op("output_norm", ops.RMSNorm(spec.norm_epsilon), x, norm)
        tensor = "token_embd.weight" if spec.tied_embeddings else "output.weight"
        weight = self.matrix(tensor, spec.vocab_size, spec.embedding_length)
        logits = self.op(
            "output", ops.Linear(), x, weight, *self.bias("output", spec.vocab_size), value="logits"
        )
        token = self.op("sample", ops.Sample(), logits, value="token")
        self.graph.outputs = (logits.name, token.name)
        self._check_all_used()
        return verify(self.graph)

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

    def matrix(self, tensor: str, rows: int, cols: int, layer: int | None = None) -> Value:
        """A weight matrix of the file, checked; declared once however often it is used."""
        return self._weight(tensor, (rows, cols), EXECUTABLE_TYPES, layer)

    def vector(self, tensor: str, length: int, layer: int | None = None) -> Value:
        """A norm weight or bias of the file, always f32."""
        return self._weight(tensor, (length,), ("f32",), layer)

    def bias(self, prefix: str, length: int, layer: int | None = None) -> tuple[Value, ...]:
        """The tensor "<prefix>.bias" where the file has it, else nothing."""
        tensor = f"{prefix}.bias"
        return (self.vector(tensor, length, layer),) if self.has(tensor) else ()

    def _weight(
        self, tensor: str, shape: tuple[int, ...], types: tuple[str, ...], layer: int | None
    ) -> Value:
        declared = self.graph.values.get(tensor)
        if declared is not None:
            return declared
        info = self._tensor(tensor, shape)
        dtype = info.type.name.lower()
        if dtype not in types:
            raise UnsupportedModelError(
                f"tensor '{tensor}' has type {info.type.name}; expected {_types(types)}",
                f"Quantise the model to one of {_types(EXECUTABLE_TYPES)}, for example with llama-quantize.",
            )
        return self.graph.declare(Value(tensor, shape, dtype, "weight", tensor=tensor, layer=layer))

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

    def _rope_table(self) -> Value:
        half = self.spec.rope.dimension_count // 2
        factors = self.spec.rope.freq_factors
        if factors is not None:
            self._tensor(factors, (half,))
        return self.graph.declare(
            Value("rope_table", ("context", half, 2), "f32", "constant", tensor=factors)
        )

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

    def norm(self, name: str, x: Value) -> Value:
        """RMSNorm with the weight "<name>.weight"."""
        weight = self.model.vector(
            f"blk.{self.layer}.{name}.weight", self.model.spec.embedding_length, self.layer
        )
        return self.op(name, ops.RMSNorm(self.model.spec.norm_epsilon), x, weight)

    def linear(self, name: str, x: Value, out: int) -> Value:
        """Product with "<name>.weight" of ``out`` rows, plus "<name>.bias" where the file has it."""
        prefix = f"blk.{self.layer}.{name}"
        weight = self.model.matrix(f"{prefix}.weight", out, int(x.shape[-1]), self.layer)
        return self.op(name, ops.Linear(), x, weight, *self.model.bias(prefix, out, self.layer))

    def attention(self, x: Value, window: int = 0) -> Value:
        """Grouped-query attention with RoPE over the cache: x f32[rows, E] -> f32[rows, E]."""
        spec = self.model.spec
        heads, kv_heads, length = spec.head_count, spec.head_count_kv, spec.key_length
        q = self.linear("attn_q", x, heads * length)
        k = self.linear("attn_k", x, kv_heads * length)
        v = self.linear("attn_v", x, kv_heads * length)
        q = self._rope("attn_q_rope", q, heads)
        k = self._rope("attn_k_rope", k, kv_heads)
        k_cache, v_cache = self._append(k, v)
        scores = self.op("attn_qk", ops.QK(heads, kv_heads, length), q, k_cache)
        scores = self.op("attn_scale", ops.Scale(1.0 / math.sqrt(length)), scores)
        scores = self.op("attn_mask", ops.Mask(causal=True, window=window), scores)
        scores = self.op("attn_softmax", ops.Softmax(), scores)
        mixed = self.op("attn_weighted_v", ops.WeightedV(heads, kv_heads, length), scores, v_cache)
        return self.linear("attn_output", mixed, spec.embedding_length)

    def swiglu(self, x: Value) -> Value:
        """down(SiLU(gate(x)) * up(x)): x f32[rows, E] -> f32[rows, E]."""
        spec = self.model.spec
        gate = self.linear("ffn_gate", x, spec.feed_forward_length)
        up = self.linear("ffn_up", x, spec.feed_forward_length)
        gated = self.op("ffn_mul", ops.Mul(), self.op("ffn_silu", ops.SiLU(), gate), up)
        return self.linear("ffn_down", gated, spec.embedding_length)

    def _rope(self, name: str, x: Value, heads: int) -> Value:
        spec = self.model.spec
        rope = ops.Rope(heads, spec.key_length, spec.rope.dimension_count, spec.rope.interleaved)
        return self.op(name, rope, x, self.model.rope_table)

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
