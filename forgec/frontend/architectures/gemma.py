"""Gemma 1 to 3: scaled embeddings, GeGLU, and from Gemma 2 on norms behind the blocks and windowed layers.

Gemma 2 caps scores and logits; Gemma 3 norms the heads of q and k, and its windowed layers rotate with a base
of their own and no scaling. The "+ 1" of Gemma's norm weights is in the file. Source: llama.cpp,
src/models/{gemma,gemma2,gemma3}.cpp.
"""

from __future__ import annotations

import math

from forgec.frontend.architectures.builders import AttentionForm, LayerBuilder, ModelBuilder, TensorTable
from forgec.frontend.spec import ModelSpec
from forgec.ir import ops
from forgec.ir.graph import Graph, Value

__all__ = ["build", "build2", "build3"]

#: What llama.cpp assumes where the file is silent.
GEMMA2_WINDOW, GEMMA2_SOFTCAP, LOGIT_SOFTCAP = 4096, 50.0, 30.0
GEMMA3_LOCAL_BASE = 10000.0
#: Of these two sizes the scores are scaled by the width per head and not by the length of a key.
LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}


def build(gguf: TensorTable, spec: ModelSpec) -> Graph:
    """The graph of one step of Gemma 1; raises as ``build_graph``."""
    model = ModelBuilder(gguf, spec)
    x = model.embedding(math.sqrt(spec.embedding_length))
    for layer in range(spec.block_count):
        block = model.layer(layer)
        attention = block.attention(block.norm("attn_norm", x), AttentionForm(spec.rope))
        x = block.add("attn_residual", x, attention)
        x = block.add("ffn_residual", x, block.gated(block.norm("ffn_norm", x), ops.GELU()))
    return model.head(x)


def build2(gguf: TensorTable, spec: ModelSpec) -> Graph:
    """The graph of one step of Gemma 2; raises as ``build_graph``."""
    model = ModelBuilder(gguf, spec)
    local = spec.rope if spec.rope_local_base is None else spec.rope.local(spec.rope_local_base)
    softcap = GEMMA2_SOFTCAP if spec.attention_softcap is None else spec.attention_softcap
    x = model.embedding(math.sqrt(spec.embedding_length))
    for layer in range(spec.block_count):
        windowed = spec.windowed(layer, 2)
        form = AttentionForm(
            local if windowed else spec.rope,
            _score_scale(spec),
            window=(spec.sliding_window or GEMMA2_WINDOW) if windowed else 0,
            softcap=softcap,
        )
        x = _layer(model.layer(layer), x, form)
    cap = LOGIT_SOFTCAP if spec.logit_softcap is None else spec.logit_softcap
    return model.head(x, ops.SoftCap(cap))


def build3(gguf: TensorTable, spec: ModelSpec) -> Graph:
    """The graph of one step of Gemma 3; raises as ``build_graph``."""
    model = ModelBuilder(gguf, spec)
    local = spec.rope.local(spec.rope_local_base or GEMMA3_LOCAL_BASE)
    x = model.embedding(math.sqrt(spec.embedding_length))
    for layer in range(spec.block_count):
        windowed = spec.sliding_window > 0 and spec.windowed(layer, 6)
        form = AttentionForm(
            local if windowed else spec.rope,
            _score_scale(spec),
            window=spec.sliding_window if windowed else 0,
            qk_norm="head",
        )
        x = _layer(model.layer(layer), x, form)
    return model.head(x, ops.SoftCap(spec.logit_softcap) if spec.logit_softcap else None)


def _layer(block: LayerBuilder, x: Value, form: AttentionForm) -> Value:
    """A layer with a norm before and behind each block."""
    attention = block.attention(block.norm("attn_norm", x), form)
    x = block.add("attn_residual", x, block.norm("post_attention_norm", attention))
    feed_forward = block.gated(block.norm("ffn_norm", x), ops.GELU())
    return block.add("ffn_residual", x, block.norm("post_ffw_norm", feed_forward))


def _score_scale(spec: ModelSpec) -> float | None:
    if spec.block_count != LAYERS_OF_27B[spec.architecture]:
        return None
    return 1.0 / math.sqrt(spec.embedding_length // spec.head_count)
