"""The building blocks of mixture-of-experts layers and of latent attention, shared by their families.

They take a layer's builder and what varies between families, check every tensor that they use, and add
unfused ops; as in ``builders``, weight data is never read.
"""

from __future__ import annotations

from dataclasses import dataclass

from forgec.errors import GGUFError, UnsupportedModelError
from forgec.frontend.architectures.builders import LayerBuilder
from forgec.frontend.expert_spec import ExpertSpec, LatentSpec
from forgec.frontend.rope import RopeSpec
from forgec.frontend.spec import ModelSpec
from forgec.ir import ops
from forgec.ir.expert_ops import Experts, HeadLinear, LatentQK, Routing
from forgec.ir.graph import Node, Value
from forgec.ir.shapes import infer

__all__ = ["ExpertForm", "experts", "latent_attention", "required_experts", "required_latent"]


@dataclass(frozen=True)
class ExpertForm:
    """What varies between the mixtures of experts of the families.

    ``gating``, ``normalise`` and ``scale`` as in ``Routing``, ``activation`` as in ``Experts``. ``inner`` is
    the length of an expert, ``shared`` that of the shared expert, 0 without one.
    """

    inner: int
    gating: str = "softmax"
    normalise: bool = False
    scale: float = 1.0
    activation: str = "silu"
    shared: int = 0


def required_experts(spec: ModelSpec) -> ExpertSpec:
    """The numbers of the experts, or an error that names the key that is missing."""
    if spec.experts is None:
        raise _missing(spec, "expert_count")
    return spec.experts


def required_latent(spec: ModelSpec) -> LatentSpec:
    """The numbers of the latent attention, or an error that names the key that is missing."""
    if spec.latent is None:
        raise _missing(spec, "attention.kv_lora_rank")
    return spec.latent


def _missing(spec: ModelSpec, key: str) -> GGUFError:
    return GGUFError(
        f"the metadata key '{spec.architecture}.{key}' is missing",
        f"A '{spec.architecture}' model needs it; convert the model again from its original.",
    )


def experts(block: LayerBuilder, x: Value, form: ExpertForm) -> Value:
    """The mixture of experts of a layer: x f32[rows, E] -> f32[rows, E].

    The router is "ffn_gate_inp", stacks are "ffn_{gate,up,down}_exps", the shared expert's matrices
    "ffn_{gate,up,down}_shexp"; biases and "ffn_gate_inp_shexp" are taken where the file has them.
    """
    spec, width = required_experts(block.model.spec), block.model.spec.embedding_length
    if block.has("ffn_gate_up_exps.weight"):
        raise UnsupportedModelError(
            f"tensor 'blk.{block.layer}.ffn_gate_up_exps.weight' holds gate and up of experts in one",
            "Convert the model with separate tensors for gate and up.",
        )
    logits = block.linear("ffn_gate_inp", x, spec.count)
    names = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
    shapes = ((form.inner, width), (form.inner, width), (width, form.inner))
    inputs = [x, logits]
    selection_bias = block.has("exp_probs_b.bias")
    if selection_bias:
        inputs.append(_vector(block, "exp_probs_b.bias", spec.count))
    inputs += [_stack(block, name, (spec.count, *shape)) for name, shape in zip(names, shapes, strict=True)]
    bias = block.has("ffn_gate_exps.bias")
    if bias:
        inputs += [
            _biases(block, name, (spec.count, shape[0])) for name, shape in zip(names, shapes, strict=True)
        ]
    shared = "none"
    if form.shared:
        shared = "gated" if block.has("ffn_gate_inp_shexp.weight") else "plain"
        for name, shape in zip(("gate", "up", "down"), _shared_shapes(form.shared, width), strict=True):
            inputs.append(_matrix(block, f"ffn_{name}_shexp.weight", shape))
    if shared == "gated":
        inputs.append(_vector(block, "ffn_gate_inp_shexp.weight", width))
    routing = Routing(
        spec.count, spec.used, form.gating, form.normalise, form.scale, spec.groups, spec.groups_used
    )
    op = Experts(routing, form.activation, selection_bias, bias, shared)
    return block.op("ffn_experts", op, *inputs)


def _shared_shapes(inner: int, width: int) -> tuple[tuple[int, int], ...]:
    return (inner, width), (inner, width), (width, inner)


def latent_attention(block: LayerBuilder, x: Value, rope: RopeSpec, scale: float) -> Value:
    """Multi-head latent attention in the absorbed form: x f32[rows, E] -> f32[rows, E].

    Queries are "attn_q", or "attn_q_b" of the normed "attn_q_a"; "attn_kv_a_mqa" compresses keys and values;
    "attn_k_b" and "attn_v_b" are the heads' matrices that bring queries into the latent space, values back.
    """
    model, latent = block.model, required_latent(block.model.spec)
    spec, heads, dims = model.spec, model.spec.head_count, rope.dimension_count
    if not latent.key_length or not latent.value_length:
        raise UnsupportedModelError(
            "the file has the projection of keys and values in one tensor, as before May 2025",
            "Convert the model again with a current convert_hf_to_gguf.py.",
        )
    key, nope = latent.kv_rank + dims, latent.key_length - dims
    query = x
    if latent.q_rank:
        query = block.norm("attn_q_a_norm", block.linear("attn_q_a", x, latent.q_rank))
    q = block.linear("attn_q_b" if latent.q_rank else "attn_q", query, heads * latent.key_length)
    kv = block.linear("attn_kv_a_mqa", x, key)
    cache = model.graph.declare(
        Value(f"kv.k.{block.layer}", (1, "context", key), "f32", "state", layer=block.layer)
    )
    inputs = (
        q,
        _stack(block, "attn_k_b", (heads, latent.kv_rank, nope)),
        kv,
        _vector(block, "attn_kv_a_norm.weight", latent.kv_rank),
        model.rope_table(rope),
        cache,
    )
    op = LatentQK(heads, nope, dims, rope.interleaved, spec.norm_epsilon)
    q, cache = _two(block, "attn_latent", op, inputs, cache)
    scores = block.op("attn_qk", ops.QK(heads, 1, key), q, cache)
    scores = block.op("attn_scale", ops.Scale(scale), scores)
    scores = block.op("attn_mask", ops.Mask(causal=True), scores)
    scores = block.op("attn_softmax", ops.Softmax(), scores)
    mixed = block.op("attn_weighted_v", ops.WeightedV(heads, 1, latent.kv_rank, key), scores, cache)
    weight = _stack(block, "attn_v_b", (heads, latent.value_length, latent.kv_rank))
    values = block.op("attn_values", HeadLinear(heads), mixed, weight)
    return block.linear("attn_output", values, spec.embedding_length)


def _stack(block: LayerBuilder, name: str, shape: tuple[int, ...]) -> Value:
    """One matrix per expert or head: "<name>.weight"."""
    return block.model.stack(f"blk.{block.layer}.{name}.weight", shape, block.layer)


def _biases(block: LayerBuilder, name: str, shape: tuple[int, int]) -> Value:
    """One bias per expert: "<name>.bias"."""
    return block.model.table(f"blk.{block.layer}.{name}.bias", shape, block.layer)


def _vector(block: LayerBuilder, tensor: str, length: int) -> Value:
    return block.model.vector(f"blk.{block.layer}.{tensor}", length, block.layer)


def _matrix(block: LayerBuilder, tensor: str, shape: tuple[int, int]) -> Value:
    return block.model.matrix(f"blk.{block.layer}.{tensor}", *shape, block.layer)


def _two(
    block: LayerBuilder, name: str, op: ops.Op, inputs: tuple[Value, ...], cache: Value
) -> tuple[Value, Value]:
    """Add an op whose second output is the next version of the cache."""
    name = f"layer{block.layer}.{name}"
    (shape, dtype), _ = infer(name, op, inputs)
    outputs = (Value(name, shape, dtype, layer=block.layer), cache.next_version())
    node = Node(name, op, tuple(v.name for v in inputs), tuple(v.name for v in outputs), block.layer)
    block.model.graph.add(node, *outputs)
    return outputs
