"""The tiny random models, one or two of every architecture: metadata and tensor shapes as data, and a writer.

Widths are shared, so that most kernels are; windows, caps and factors are small enough to matter within a
few tokens. Weights come from a generator seeded by the name, so a model is the same wherever it is written.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.gguf_files import bpe_vocabulary, encode, write_gguf

__all__ = ["TINY", "Tiny"]

E, F, HEADS, KV_HEADS, LENGTH, VOCABULARY, CONTEXT = 64, 96, 4, 2, 16, 264, 64
Q, K = HEADS * LENGTH, KV_HEADS * LENGTH

Shapes = Mapping[str, tuple[int, ...]]

ATTENTION: Shapes = {
    "attn_q.weight": (Q, E),
    "attn_k.weight": (K, E),
    "attn_v.weight": (K, E),
    "attn_output.weight": (E, Q),
}
ONE_QKV: Shapes = {"attn_qkv.weight": (Q + 2 * K, E), "attn_output.weight": (E, Q)}
GATED: Shapes = {"ffn_gate.weight": (F, E), "ffn_up.weight": (F, E), "ffn_down.weight": (E, F)}
ONE_GATE_UP: Shapes = {"ffn_up.weight": (2 * F, E), "ffn_down.weight": (E, F)}
PLAIN: Shapes = {"ffn_up.weight": (F, E), "ffn_down.weight": (E, F)}
NORMS: Shapes = {"attn_norm.weight": (E,), "ffn_norm.weight": (E,)}
POST_NORMS: Shapes = {"post_attention_norm.weight": (E,), "post_ffw_norm.weight": (E,)}
HEAD_NORMS: Shapes = {"attn_q_norm.weight": (LENGTH,), "attn_k_norm.weight": (LENGTH,)}
OWN_HEAD_NORMS: Shapes = {"attn_q_norm.weight": (HEADS, LENGTH), "attn_k_norm.weight": (KV_HEADS, LENGTH)}
ROW_NORMS: Shapes = {"attn_q_norm.weight": (Q,), "attn_k_norm.weight": (K,)}
LLAMA: Shapes = {**NORMS, **ATTENTION, **GATED}


def biased(shapes: Shapes, *names: str) -> Shapes:
    """The shapes with a bias beside each weight, or beside those of these names."""
    chosen = [name for name in shapes if not names or name.removesuffix(".weight") in names]
    return {**shapes, **{name.replace(".weight", ".bias"): (shapes[name][0],) for name in chosen}}


#: Experts of a layer and how many of them a token takes, and the ranks and lengths of latent attention.
EXPERTS, USED, KV_RANK, Q_RANK, NOPE, VALUE = 6, 2, 32, 40, 16, 24


def expert_shapes(inner: int) -> dict[str, tuple[int, ...]]:
    """Router and stacks of experts with ``inner`` rows in gate and up."""
    return {
        "ffn_gate_inp.weight": (EXPERTS, E),
        "ffn_gate_exps.weight": (EXPERTS, inner, E),
        "ffn_up_exps.weight": (EXPERTS, inner, E),
        "ffn_down_exps.weight": (EXPERTS, E, inner),
    }


def shared_shapes(inner: int) -> dict[str, tuple[int, ...]]:
    """A shared expert."""
    return {
        "ffn_gate_shexp.weight": (inner, E),
        "ffn_up_shexp.weight": (inner, E),
        "ffn_down_shexp.weight": (E, inner),
    }


@dataclass(frozen=True)
class Tiny:
    """One model: tensors of a layer, tensors beside the layers, and metadata under the architecture's name.

    ``first`` are the tensors of layer 0 where it differs; ``types`` the types of tensors that are not F32, by
    the end of the name. ``top`` adds to (or, with None, takes from) embedding, output norm and output matrix.
    """

    architecture: str
    layer: Shapes
    metadata: Mapping[str, Any] = field(default_factory=dict)
    top: Mapping[str, tuple[int, ...] | None] = field(default_factory=dict)
    layers: int = 2
    layer_norm: bool = False
    kv_heads: int = KV_HEADS
    first: Shapes | None = None
    types: Mapping[str, str] = field(default_factory=dict)

    def all_metadata(self) -> dict[str, Any]:
        norm = "layer_norm_epsilon" if self.layer_norm else "layer_norm_rms_epsilon"
        own: dict[str, Any] = {
            "block_count": self.layers,
            "context_length": CONTEXT,
            "embedding_length": E,
            "feed_forward_length": F,
            "attention.head_count": HEADS,
            "attention.head_count_kv": self.kv_heads,
            f"attention.{norm}": 1e-5,
            "rope.dimension_count": LENGTH,
            "vocab_size": VOCABULARY,
            **self.metadata,
        }
        return {
            "general.architecture": self.architecture,
            "general.name": "tiny",  # of some names llama.cpp expects certain tokens
            **{f"{self.architecture}.{key}": value for key, value in own.items() if value is not None},
            **bpe_vocabulary(VOCABULARY),
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name to NumPy shape."""
        top: dict[str, tuple[int, ...] | None] = {
            "token_embd.weight": (VOCABULARY, E),
            "output_norm.weight": (E,),
            **({"output_norm.bias": (E,)} if self.layer_norm else {}),
            "output.weight": (VOCABULARY, E),
            **self.top,
        }
        layers = {
            f"blk.{layer}.{name}": shape
            for layer in range(self.layers)
            for name, shape in (self.first if layer == 0 and self.first else self.layer).items()
        }
        return {**{name: shape for name, shape in top.items() if shape is not None}, **layers}

    def write(self, path: Path, name: str) -> Path:
        """Write the model called ``name``: matrices N(0, 1/columns), norms about 1, biases and rest small."""
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        tensors = {}
        for tensor, shape in self.shapes().items():
            values = rng.standard_normal(shape, np.float32)
            if tensor.startswith("rope_"):
                values = 1 + np.abs(values)
            elif "norm" in tensor and tensor.endswith(".weight"):
                values = 1 + values * np.float32(0.2)
            elif len(shape) == 1:
                values = values * np.float32(0.2)
            elif "embd" in tensor:
                values = values * np.float32(0.25)
            else:
                values = values / np.float32(np.sqrt(shape[-1]))
            kind = next((kind for end, kind in self.types.items() if tensor.endswith(end)), "F32")
            tensors[tensor] = encode(values, kind)
        return write_gguf(path, self.all_metadata(), tensors)


_MIXTURE = {"expert_count": EXPERTS, "expert_used_count": USED}
_HEADS = {"attention.key_length": LENGTH, "attention.value_length": LENGTH}
_LATENT = {
    "attn_q_a.weight": (Q_RANK, E),
    "attn_q_a_norm.weight": (Q_RANK,),
    "attn_q_b.weight": (HEADS * (NOPE + LENGTH), Q_RANK),
    "attn_kv_a_mqa.weight": (KV_RANK + LENGTH, E),
    "attn_kv_a_norm.weight": (KV_RANK,),
    "attn_k_b.weight": (HEADS, KV_RANK, NOPE),
    "attn_v_b.weight": (HEADS, VALUE, KV_RANK),
    "attn_output.weight": (E, HEADS * VALUE),
}
_LATENT_LENGTHS = {
    "attention.q_lora_rank": Q_RANK,
    "attention.kv_lora_rank": KV_RANK,
    "attention.key_length": KV_RANK + LENGTH,
    "attention.value_length": KV_RANK,
    "attention.key_length_mla": NOPE + LENGTH,
    "attention.value_length_mla": VALUE,
    "expert_feed_forward_length": F,
    "leading_dense_block_count": 1,
}
_YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": CONTEXT // 4,
}
_GPT_OSS = {
    **biased({**ATTENTION, **expert_shapes(F)}, "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_inp"),
    "attn_norm.weight": (E,),
    "post_attention_norm.weight": (E,),
    "attn_sinks.weight": (HEADS,),
    "ffn_gate_exps.bias": (EXPERTS, F),
    "ffn_up_exps.bias": (EXPERTS, F),
    "ffn_down_exps.bias": (EXPERTS, E),
}

_GPT2 = biased({**NORMS, **ONE_QKV, **PLAIN})
_TIED = {"output.weight": None}
_GEMMA3 = {**LLAMA, **POST_NORMS, **HEAD_NORMS}
_GRANITE = {
    "logit_scale": 4.0,
    "residual_scale": 0.3,
    "embedding_scale": 6.0,
    "attention.scale": 0.11,
}
_MULTI_QUERY = {**ONE_QKV, "attn_qkv.weight": (Q + 2 * LENGTH, E)}
_COMMAND_R = {"attn_norm.weight": (E,), **ATTENTION, **GATED}
_NO_BIAS = {"output_norm.bias": None}
_ALIBI = {"rope.dimension_count": None}
_LONG_ROPE = {"rope_factors_long.weight": (LENGTH // 2,), "rope_factors_short.weight": (LENGTH // 2,)}

#: Name of a fixture to its model.
TINY: Mapping[str, Tiny] = {
    "arcee": Tiny("arcee", {**NORMS, **ATTENTION, **PLAIN}),
    "bloom": Tiny(
        "bloom",
        biased({**NORMS, **{**ONE_QKV, "attn_qkv.weight": (3 * Q, E)}, **PLAIN}),
        _ALIBI,
        {**_TIED, "token_embd_norm.weight": (E,), "token_embd_norm.bias": (E,)},
        layer_norm=True,
        kv_heads=HEADS,
    ),
    "chatglm": Tiny(
        "chatglm",
        {**NORMS, **biased(ONE_QKV, "attn_qkv"), **ONE_GATE_UP},
        {"rope.dimension_count": LENGTH // 2},
    ),
    "cohere2": Tiny(
        "cohere2",
        _COMMAND_R,
        {"logit_scale": 2.0, "attention.sliding_window": 6},
        {**_TIED, **_NO_BIAS},
        layers=4,
        layer_norm=True,
    ),
    "command-r": Tiny("command-r", _COMMAND_R, {"logit_scale": 2.0}, {**_TIED, **_NO_BIAS}, layer_norm=True),
    "deepseek2": Tiny(
        "deepseek2",
        {
            **NORMS,
            **_LATENT,
            **expert_shapes(F),
            **shared_shapes(2 * F),
            "exp_probs_b.bias": (EXPERTS,),
        },
        {
            **_MIXTURE,
            **_LATENT_LENGTHS,
            **_YARN,
            "rope.scaling.yarn_log_multiplier": 0.08,
            "expert_gating_func": 2,
            "expert_weights_norm": True,
            "expert_weights_scale": 2.5,
            "expert_group_count": 3,
            "expert_group_used_count": 2,
            "expert_shared_count": 2,
        },
        layers=3,
        kv_heads=1,
        first={**NORMS, **_LATENT, **GATED},
    ),
    "deepseek2-lite": Tiny(
        "deepseek2",
        {
            **NORMS,
            **{name: shape for name, shape in _LATENT.items() if not name.startswith("attn_q_")},
            "attn_q.weight": (HEADS * (NOPE + LENGTH), E),
            **expert_shapes(F),
            **shared_shapes(F),
        },
        {
            **_MIXTURE,
            **_LATENT_LENGTHS,
            "attention.q_lora_rank": 0,
            "leading_dense_block_count": 0,
            "expert_shared_count": 1,
        },
        kv_heads=1,
    ),
    "exaone": Tiny("exaone", LLAMA),
    "falcon": Tiny(
        "falcon",
        {**biased({"attn_norm.weight": (E,)}), **_MULTI_QUERY, **PLAIN},
        layer_norm=True,
        kv_heads=1,
    ),
    "falcon-40b": Tiny(
        "falcon",
        {**biased({"attn_norm.weight": (E,), "attn_norm_2.weight": (E,)}), **ONE_QKV, **PLAIN},
        layer_norm=True,
    ),
    "gemma": Tiny("gemma", LLAMA, {"attention.key_length": LENGTH, "attention.value_length": LENGTH}, _TIED),
    "gemma2": Tiny(
        "gemma2",
        {**LLAMA, **POST_NORMS},
        {
            "attention.key_length": LENGTH,
            "attention.value_length": LENGTH,
            "attention.sliding_window": 6,
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 4.0,
        },
        _TIED,
    ),
    "gemma3": Tiny(
        "gemma3",
        _GEMMA3,
        {
            "attention.key_length": LENGTH,
            "attention.value_length": LENGTH,
            "attention.sliding_window": 6,
            "rope.freq_base": 1e6,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
        _TIED,
        layers=6,
    ),
    "glm4": Tiny(
        "glm4",
        {**NORMS, **POST_NORMS, **biased(ATTENTION, "attn_q", "attn_k", "attn_v"), **ONE_GATE_UP},
        {"rope.dimension_count": LENGTH // 2},
    ),
    "gpt-oss": Tiny(
        "gpt-oss",
        _GPT_OSS,
        {**_MIXTURE, **_HEADS, **_YARN, "expert_feed_forward_length": F, "attention.sliding_window": 6},
        types={"exps.weight": "MXFP4"},
    ),
    "gpt2": Tiny(
        "gpt2",
        biased({**NORMS, **{**ONE_QKV, "attn_qkv.weight": (3 * Q, E)}, **PLAIN}),
        _ALIBI,
        {**_TIED, "position_embd.weight": (CONTEXT, E)},
        layer_norm=True,
        kv_heads=HEADS,
    ),
    "gptneox": Tiny(
        "gptneox",
        biased({**NORMS, **{**ONE_QKV, "attn_qkv.weight": (3 * Q, E)}, **PLAIN}),
        {"use_parallel_residual": True, "rope.dimension_count": LENGTH // 4},
        layer_norm=True,
        kv_heads=HEADS,
    ),
    "gptneox-sequential": Tiny(
        "gptneox",
        biased({**NORMS, **{**ONE_QKV, "attn_qkv.weight": (3 * Q, E)}, **PLAIN}),
        {"use_parallel_residual": False, "rope.dimension_count": LENGTH // 4},
        layer_norm=True,
        kv_heads=HEADS,
    ),
    "granite": Tiny("granite", LLAMA, _GRANITE, _TIED),
    "granitemoe": Tiny(
        "granitemoe",
        {**NORMS, **ATTENTION, **expert_shapes(F), **shared_shapes(2 * F)},
        {**_GRANITE, **_MIXTURE, "expert_shared_feed_forward_length": 2 * F},
        _TIED,
    ),
    "internlm2": Tiny("internlm2", LLAMA),
    "llama": Tiny("llama", LLAMA),
    "llama-3.2": Tiny(
        "llama", LLAMA, {"rope.freq_base": 500000.0}, {**_TIED, "rope_freqs.weight": (LENGTH // 2,)}
    ),
    "mixtral": Tiny("llama", {**NORMS, **ATTENTION, **expert_shapes(F)}, _MIXTURE),
    "mpt": Tiny(
        "mpt",
        {**NORMS, **{**ONE_QKV, "attn_qkv.weight": (3 * Q, E)}, **PLAIN},
        {**_ALIBI, "attention.max_alibi_bias": 8.0, "attention.clamp_kqv": 0.7},
        {**_TIED, **_NO_BIAS},
        layer_norm=True,
        kv_heads=HEADS,
    ),
    "nemotron": Tiny(
        "nemotron",
        {**biased(NORMS), **ATTENTION, **PLAIN},
        {"rope.dimension_count": LENGTH // 2},
        layer_norm=True,
    ),
    "olmo": Tiny(
        "olmo",
        {**ATTENTION, **GATED},
        {"attention.clamp_kqv": 0.7},
        {"output_norm.weight": None, **_NO_BIAS},
        layer_norm=True,
    ),
    "olmo2": Tiny("olmo2", {**POST_NORMS, **ROW_NORMS, **ATTENTION, **GATED}),
    "olmo3": Tiny(
        "olmo2",
        {**POST_NORMS, **ROW_NORMS, **ATTENTION, **GATED},
        {
            "attention.sliding_window": 6,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": CONTEXT // 4,
        },
        layers=4,
    ),
    "olmoe": Tiny(
        "olmoe",
        {
            **NORMS,
            **ATTENTION,
            **dict.fromkeys(("attn_k.weight", "attn_v.weight"), (Q, E)),
            **dict.fromkeys(ROW_NORMS, (Q,)),
            **expert_shapes(F),
        },
        _MIXTURE,
        kv_heads=HEADS,
    ),
    "phi2": Tiny(
        "phi2",
        biased({"attn_norm.weight": (E,), **ONE_QKV, **PLAIN}),
        {"rope.dimension_count": LENGTH // 2},
        {"output.bias": (VOCABULARY,)},
        layer_norm=True,
    ),
    "phi3": Tiny("phi3", {**NORMS, **ONE_QKV, **ONE_GATE_UP}),
    "phi3-long": Tiny(
        "phi3",
        {**NORMS, **ONE_QKV, **ONE_GATE_UP},
        {
            "rope.scaling.original_context_length": CONTEXT // 4,
            "rope.scaling.attn_factor": 1.2,
            "rope.scaling.type": "longrope",
        },
        _LONG_ROPE,
    ),
    "qwen2": Tiny("qwen2", {**LLAMA, **biased(ATTENTION, "attn_q", "attn_k", "attn_v")}, {}, _TIED),
    "qwen2moe": Tiny(
        "qwen2moe",
        {
            **NORMS,
            **biased(ATTENTION, "attn_q", "attn_k", "attn_v"),
            **expert_shapes(F),
            **shared_shapes(F),
            "ffn_gate_inp_shexp.weight": (E,),
        },
        {**_MIXTURE, "expert_feed_forward_length": F, "expert_shared_feed_forward_length": F},
    ),
    "qwen3": Tiny(
        "qwen3",
        {**LLAMA, **HEAD_NORMS},
        {"attention.key_length": LENGTH, "attention.value_length": LENGTH},
    ),
    "qwen3moe": Tiny(
        "qwen3moe",
        {**NORMS, **ATTENTION, **HEAD_NORMS, **expert_shapes(F)},
        {**_MIXTURE, **_HEADS, "expert_feed_forward_length": F},
    ),
    "smollm3": Tiny("smollm3", LLAMA, {}, _TIED, layers=4),
    "stablelm": Tiny(
        "stablelm",
        {**biased(NORMS), **ATTENTION, **GATED},
        {"rope.dimension_count": LENGTH // 4},
        layer_norm=True,
    ),
    "stablelm-12b": Tiny(
        "stablelm",
        {**biased({"attn_norm.weight": (E,)}), **OWN_HEAD_NORMS, **ATTENTION, **GATED},
        {"rope.dimension_count": LENGTH // 4},
        layer_norm=True,
    ),
    "starcoder2": Tiny("starcoder2", biased({**NORMS, **ATTENTION, **PLAIN}), {}, _TIED, layer_norm=True),
}
