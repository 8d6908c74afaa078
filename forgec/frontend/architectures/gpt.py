"""The line of GPT-2: LayerNorm and a plain network of two matrices.

GPT-2, GPT-NeoX, BLOOM, MPT, Falcon, StarCoder 2, Nemotron. What differs is where positions come from
(learned, rotated, ALiBi), the activation (GELU; Nemotron's squared ReLU), and whether attention and network
run side by side. Source: llama.cpp, src/models/{gpt2,gptneox,bloom,mpt,falcon,starcoder2,nemotron}.cpp.
"""

from __future__ import annotations

from forgec.frontend.architectures.builders import AttentionForm, ModelBuilder, TensorTable
from forgec.frontend.spec import ModelSpec
from forgec.ir import ops
from forgec.ir.graph import Graph, Value

__all__ = ["bloom", "falcon", "gpt2", "gptneox", "mpt", "nemotron", "starcoder2"]

#: ALiBi's exponent of BLOOM, which its files do not give.
BLOOM_ALIBI = 8.0


def gpt2(gguf: TensorTable, spec: ModelSpec) -> Graph:
    """Learned positions; raises as ``build_graph``."""
    model = ModelBuilder(gguf, spec, norm="layer")
    return _sequential(model, model.embedding(positions=True), AttentionForm(None))


def bloom(gguf: TensorTable, spec: ModelSpec) -> Graph:
    """ALiBi, and a norm behind the embedding; raises as ``build_graph``."""
    model = ModelBuilder(gguf, spec, norm="layer")
    x = model.norm("token_embd_norm", model.embedding())
    return _sequential(model, x, AttentionForm(None, alibi=BLOOM_ALIBI))


def mpt(gguf: TensorTable, spec: ModelSpec) -> Graph:
    """ALiBi or learned positions, q, k and v clamped in some; raises as ``build_graph``."""
    model = ModelBuilder(gguf, spec, norm="layer")
    x = model.embedding(positions=model.has("position_embd.weight"))
    form = AttentionForm(None, alibi=spec.alibi_bias or 0.0, clamp=spec.qkv_clamp or 0.0)
    return _sequential(model, x, form)


def starcoder2(gguf: TensorTable, spec: ModelSpec) -> Graph:
    """RoPE; the sliding window is not applied, as in llama.cpp. Raises as ``build_graph``."""
    model = ModelBuilder(gguf, spec, norm="layer")
    return _sequential(model, model.embedding(), AttentionForm(spec.rope))


def nemotron(gguf: TensorTable, spec: ModelSpec) -> Graph:
    """Partial RoPE and squared ReLU; raises as ``build_graph``."""
    model = ModelBuilder(gguf, spec, norm="layer")
    return _sequential(model, model.embedding(), AttentionForm(spec.rope), ops.SquaredReLU())


def gptneox(gguf: TensorTable, spec: ModelSpec) -> Graph:
    """Partial RoPE; both blocks read the residual stream of the layer's beginning where the file says so."""
    model = ModelBuilder(gguf, spec, norm="layer")
    form = AttentionForm(spec.rope)
    if not model.required("use_parallel_residual", spec.parallel_residual):
        return _sequential(model, model.embedding(), form)
    x = model.embedding()
    for layer in range(spec.block_count):
        block = model.layer(layer)
        attention = block.attention(block.norm("attn_norm", x), form)
        feed_forward = block.plain(block.norm("ffn_norm", x), ops.GELU())
        x = block.add("ffn_residual", block.add("attn_residual", x, attention), feed_forward)
    return model.head(x)


def falcon(gguf: TensorTable, spec: ModelSpec) -> Graph:
    """RoPE; both blocks read one norm (7B), or each its own ("attn_norm_2" is the attention's, 40B)."""
    model = ModelBuilder(gguf, spec, norm="layer")
    x = model.embedding()
    for layer in range(spec.block_count):
        block = model.layer(layer)
        normed = block.norm("attn_norm", x)
        own = block.norm("attn_norm_2", x) if block.has("attn_norm_2.weight") else normed
        attention = block.attention(own, AttentionForm(spec.rope))
        x = block.add("attn_residual", x, attention)
        x = block.add("ffn_residual", x, block.plain(normed, ops.GELU()))
    return model.head(x)


def _sequential(
    model: ModelBuilder, x: Value, form: AttentionForm, activation: ops.Pointwise | None = None
) -> Graph:
    """Layers in which the network reads what the attention left."""
    for layer in range(model.spec.block_count):
        block = model.layer(layer)
        x = block.add("attn_residual", x, block.attention(block.norm("attn_norm", x), form))
        x = block.add("ffn_residual", x, block.plain(block.norm("ffn_norm", x), activation or ops.GELU()))
    return model.head(x)
