"""The llama family: pre-norm layers of grouped-query attention with RoPE and a SwiGLU feed-forward network.

Llama 1 to 3.2, Mistral, SmolLM and 2, TinyLlama, Yi, all of which GGUF calls "llama"; Qwen 2 and 2.5 with
biases on q, k and v; EXAONE 3 and InternLM 2; Phi 3 and 4 and ChatGLM, which have one matrix for q, k and v
and one for gate and up. Biases are taken where the file has them. As in llama.cpp, a sliding window in the
metadata of these is not applied. With experts it is Mixtral, of ``moe``. Source: llama.cpp,
src/models/{llama,qwen2,exaone,internlm2,phi3,chatglm}.cpp.
"""

from __future__ import annotations

from forgec.frontend.architectures import moe
from forgec.frontend.architectures.builders import AttentionForm, ModelBuilder, TensorTable
from forgec.frontend.spec import ModelSpec
from forgec.ir import ops
from forgec.ir.graph import Graph

__all__ = ["build"]


def build(gguf: TensorTable, spec: ModelSpec) -> Graph:
    """The graph of one step; raises as ``build_graph``."""
    if spec.experts is not None:
        return moe.mixtral(gguf, spec)
    model = ModelBuilder(gguf, spec)
    form = AttentionForm(spec.rope, scale=spec.attention_scale or None)
    x = model.embedding()
    for layer in range(spec.block_count):
        block = model.layer(layer)
        x = block.add("attn_residual", x, block.attention(block.norm("attn_norm", x), form))
        x = block.add("ffn_residual", x, block.gated(block.norm("ffn_norm", x), ops.SiLU()))
    return model.head(x)
