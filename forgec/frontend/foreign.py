"""What a GGUF file holds that forgec has no operation for: tensor names in, operations by name out.

The table below knows the tensor names of every architecture that llama.cpp can read, so that a file that
cannot be compiled is explained by the operation it lacks and the tensor that asks for it. It decides nothing:
what is supported is what ``frontend.architectures`` builds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["ForeignOperation", "file_kind", "foreign_operations", "unknown_tensors"]


@dataclass(frozen=True)
class ForeignOperation:
    """An operation that forgec lacks, the first tensor that needs it, and how many tensors do.

    ``tensor`` is a metadata key where a key asks for the operation.
    """

    operation: str
    tensor: str
    count: int = 1

    @property
    def sentence(self) -> str:
        """For people: what asks for which operation."""
        if self.tensor.endswith(_CAUSAL):
            return (
                f"metadata key '{self.tensor}' is false: {self.operation} is an operation that forgec lacks"
            )
        more = f" (and {self.count - 1} more)" if self.count > 1 else ""
        return f"tensor '{self.tensor}'{more} belongs to {self.operation}, an operation that forgec lacks"


_CAUSAL = ".attention.causal"


# (pattern of the name without layer number and suffix, operation). The first match counts.
# Source of the names: gguf-py's constants.py, llama.cpp's src/llama-arch.cpp and tools/mtmd/clip-impl.h.
_FOREIGN: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), operation)
    for pattern, operation in (
        (r"ssm_(ba|beta|alpha|f_[ab]|g|g_[ab]|conv1d_[qkv])$",
         "a gated delta-rule recurrence (linear attention)"),
        (r"ssm_", "a state-space layer (Mamba: causal convolution and selective scan)"),
        (r"(time|channel)_mix_", "an RWKV layer (token shift and WKV recurrence)"),
        (r"shortconv\.", "a gated short convolution"),
        (r"(v|a|mm|s3|sam|resampler|model\.image_newline|image_newline|model\.vision|adapter)(\.|$)",
         "an image or audio encoder (patches, bidirectional attention, projector)"),
        (r"vis_", "an image expert (a second set of layer weights chosen by the kind of token)"),
        (r"dec\.|enc\.|cross_attn|attn_rel_b", "an encoder-decoder (cross attention, relative positions)"),
        (r"token_types$", "a BERT encoder (segment embeddings, bidirectional attention)"),
        (r"(cls|dense_[23])(\.|$)", "a classifier or embedding head (pooling over all tokens)"),
        (r"(conv1d|convnext|posnet)(\.|$)", "an audio decoder (convolutions over time)"),
        (r"altup_|laurel_|per_layer_|inp_gate$|proj$|post_norm$",
         "per-layer embeddings or AltUp (Gemma 3n and 4)"),
        (r"indexer|.*compressor", "sparse attention (an indexer chooses the positions that are attended)"),
        (r"(output_)?hc_", "hyper-connections (several residual streams)"),
        (r"ple_", "embeddings of past tokens inside the layers"),
        (r"nextn\.|eh_proj$", "multi-token prediction (a draft layer after the last one)"),
        (r"(fc|d2t|t2d|markov_w[12]|conf_proj|masked_embd_.*|(attn|ffn)_conv_(base|proj)|selector_.*)$",
         "a draft model (it reads the hidden states of another model)"),
        (r"ffn_(gate|up|down)_chexps$|ffn_routed_|ffn_latent_|ffn_gate_tid2eid$|ffn_norm_exps$|exp_probs_b_vl$|pre_ffw_norm_2$|"
         r"ffn_(gate|up|down)\.\d+$|"
         r"post_ffw_norm_[12]$",
         "a mixture of experts of an unusual form (grouped, latent or token-routed experts)"),
        (r"(attn|ffn|output)_res_score$", "learned residual mixing"),
        (r"(attn|ffn)_sub_norm$", "BitNet layers (ternary weights with inner norms)"),
        (r"attn_output_[ab]$|attn_kv$|attn_gate$|layer_output_scale$",
         "an attention of an unusual form (low-rank output, gated, or scaled per layer)"),
        (r"hrm\.", "hierarchical recurrence (layers that run several times a token)"),
        (r"(pockettts|talker|code_predictor|mimi|tts|spk|audio)\b.*", "speech synthesis"),
    )
)  # fmt: skip
# Names of decoders that forgec has operations for: attention, MLA, feed-forward, experts, norms.
_ORDINARY = re.compile(
    r"""(token_embd|token_embd_norm|position_embd|output|output_norm|rope_freqs|rope_factors_(long|short)
    |attn_(norm|norm_2|qkv|q|k|v|output|sinks|rot_embd|q_norm|k_norm|output_norm)|post_attention_norm
    |attn_(q_a|q_b|kv_a_mqa|kv_b|k_b|v_b|q_a_norm|kv_a_norm)|layer_output_norm|exp_probs_b|ffn|ffn\.act
    |ffn_(norm|gate|down|up|gate_inp|gate_inp_shexp)|post_ffw_norm|ffn_(gate|down|up|gate_up)_(exps|shexp))\Z""",
    re.VERBOSE,
)
_LAYER = re.compile(r"(?:blk\.\d+\.)?(?P<name>.*?)(?:\.(?:weight|bias|scale|input_scale))?\Z", re.DOTALL)

# general.type, where it is not a model; and what such a file is for.
_TYPES: Mapping[str, tuple[str, str]] = {
    "adapter": ("an adapter, not a model", "Give it with its model: forgec compile MODEL --lora FILE."),
    "imatrix": ("an importance matrix, not a model", "It is input for llama-quantize."),
    "mmproj": ("the image or audio encoder of a model, not a language model", "Give the model's main file."),
}


def foreign_operations(tensors: Iterable[str], metadata: Mapping[str, Any]) -> tuple[ForeignOperation, ...]:
    """The operations that a file needs and forgec lacks, in the order of their first tensors."""
    found: dict[str, ForeignOperation] = {}
    for tensor in tensors:
        name = _base_name(tensor)
        operation = next((words for pattern, words in _FOREIGN if pattern.match(name)), None)
        if operation in found:
            found[operation] = replace(found[operation], count=found[operation].count + 1)
        elif operation is not None:
            found[operation] = ForeignOperation(operation, tensor)
    key = f"{metadata.get('general.architecture')}{_CAUSAL}"
    if metadata.get(key) is False:
        found["bidirectional"] = ForeignOperation("attention to later positions", key)
    return tuple(found.values())


def unknown_tensors(tensors: Iterable[str]) -> tuple[str, ...]:
    """The ``tensors`` whose names belong neither to an ordinary decoder nor to an operation of the table."""
    return tuple(
        tensor
        for tensor in tensors
        if not _ORDINARY.match(name := _base_name(tensor))
        and not any(pattern.match(name) for pattern, _ in _FOREIGN)
    )


def _base_name(tensor: str) -> str:
    match = _LAYER.match(tensor)
    return tensor if match is None else match["name"]


def file_kind(metadata: Mapping[str, Any]) -> tuple[str, str] | None:
    """(what the file is, what to do with it) where it is not a language model; None where it may be one."""
    kind = metadata.get("general.type")
    if metadata.get("general.architecture") == "clip":
        kind = "mmproj"
    return _TYPES.get(kind) if isinstance(kind, str) else None
