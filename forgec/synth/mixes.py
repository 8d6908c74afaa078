"""Quantisation mixes: which tensor of a model gets which type, as llama.cpp's quantiser decides it.

A mix's name, a model's shape and a tensor's name go in, a GGML type comes out. Plain data and small rules;
nothing here makes weights. Without an importance matrix, as most published files were made of these mixes.

Source of every rule: llama.cpp, src/llama-quant.cpp (llama_tensor_get_type, llama_ftype_get_default_type).
"""

from __future__ import annotations

from dataclasses import dataclass

from forgec.errors import UsageError
from forgec.frontend.quant import QUANT_BY_NAME

__all__ = ["MIXES", "Mix", "TensorPlace", "tensor_type"]


@dataclass(frozen=True)
class Mix:
    """A mix: its name, general.file_type (enum llama_ftype) and the type that most tensors get."""

    name: str
    file_type: int
    base: str


MIXES: dict[str, Mix] = {
    m.name: m
    for m in (
        Mix("F32", 0, "F32"),
        Mix("F16", 1, "F16"),
        Mix("BF16", 32, "BF16"),
        Mix("Q4_0", 2, "Q4_0"),
        Mix("Q4_1", 3, "Q4_1"),
        Mix("Q5_0", 8, "Q5_0"),
        Mix("Q5_1", 9, "Q5_1"),
        Mix("Q8_0", 7, "Q8_0"),
        Mix("Q2_K", 10, "Q2_K"),
        Mix("Q3_K_S", 11, "Q3_K"),
        Mix("Q3_K_M", 12, "Q3_K"),
        Mix("Q3_K_L", 13, "Q3_K"),
        Mix("Q4_K_S", 14, "Q4_K"),
        Mix("Q4_K_M", 15, "Q4_K"),
        Mix("Q5_K_S", 16, "Q5_K"),
        Mix("Q5_K_M", 17, "Q5_K"),
        Mix("Q6_K", 18, "Q6_K"),
        Mix("IQ2_XXS", 19, "IQ2_XXS"),
        Mix("IQ2_XS", 20, "IQ2_XS"),
        Mix("IQ3_XXS", 23, "IQ3_XXS"),
        Mix("IQ4_NL", 25, "IQ4_NL"),
        Mix("IQ3_S", 26, "IQ3_S"),
        Mix("IQ3_M", 27, "IQ3_S"),
        Mix("IQ4_XS", 30, "IQ4_XS"),
    )
}
#: What the quantiser falls back to where a row is no whole number of 256-element blocks.
FALLBACK = {
    "Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "IQ4_XS": "IQ4_NL", "IQ2_XXS": "IQ4_NL", "IQ2_XS": "IQ4_NL",
    "IQ2_S": "IQ4_NL", "IQ3_XXS": "IQ4_NL", "IQ3_S": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}  # fmt: skip
#: Mixes that are no quantisation: every matrix has the one type.
PLAIN = ("F32", "F16", "BF16")
#: Mixes of two to three bits that use an importance matrix: head and embedding have types of their own.
LOW_BITS = {"IQ2_XXS", "IQ2_XS"}


@dataclass(frozen=True)
class TensorPlace:
    """A matrix as the rules see it: its role ("attn_v", "ffn_down", "output", …), layer and row length."""

    role: str
    layer: int
    cols: int


def tensor_type(mix: str, place: TensorPlace, layers: int, gqa: int, *, tied: bool) -> str:
    """GGML type name of a matrix in a mix.

    ``layers`` and ``gqa`` (query heads per KV head) are the model's; ``tied``: the embedding is the output.
    Raises UsageError for an unknown mix.
    """
    if mix not in MIXES:
        raise UsageError(f"there is no quantisation mix '{mix}'", f"Known: {', '.join(MIXES)}.")
    base = MIXES[mix].base
    if mix in PLAIN:
        return base
    if place.role == "output" or (tied and place.role == "token_embd"):
        kind = _head(mix, base, place.cols)
    else:
        kind = _body(mix, place, layers, gqa) or base
    if place.cols % QUANT_BY_NAME[kind].block:
        kind = FALLBACK.get(kind, "F16")
        kind = kind if place.cols % QUANT_BY_NAME[kind].block == 0 else "F16"
    return kind


def _head(mix: str, base: str, cols: int) -> str:
    if cols % QUANT_BY_NAME[base].block or base == "Q8_0":
        return "Q8_0"
    return "Q5_K" if mix in LOW_BITS | {"IQ3_XXS"} else "Q6_K"


def _body(mix: str, place: TensorPlace, layers: int, gqa: int) -> str | None:
    """The type of a tensor that differs from the mix's base type."""
    if place.role == "token_embd":
        return "Q2_K" if mix in LOW_BITS else "IQ3_S" if mix == "IQ3_XXS" else None
    if mix in LOW_BITS:
        return _low_bits(place, layers, gqa)
    rules = {"attn_v": _values, "ffn_down": _down}
    if place.role in rules:
        return rules[place.role](mix, place.layer, layers, gqa)
    if place.role == "attn_output":
        return {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}.get(
            mix
        )
    if place.role == "attn_qkv":
        return {"Q3_K_M": "Q4_K", "Q3_K_L": "Q4_K", "IQ3_M": "Q4_K", "Q4_K_M": "Q5_K", "Q5_K_M": "Q6_K"}.get(
            mix
        )
    if place.role in ("attn_q", "attn_k"):
        return {"IQ3_XXS": "IQ2_S"}.get(mix)
    return None


def _more_bits(layer: int, layers: int) -> bool:
    """The first and last eighth of the layers, and every third between them."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _values(mix: str, layer: int, layers: int, gqa: int) -> str | None:
    """attn_v: small beside the other matrices where query heads share it, and worth more bits."""
    if mix == "Q2_K":
        return "Q4_K" if gqa >= 4 else "Q3_K"
    if mix == "IQ3_XXS":
        return "Q4_K" if gqa >= 4 else "IQ3_S"
    if mix == "Q3_K_M":
        return "Q5_K" if layer < 2 else "Q4_K"
    if mix in ("IQ4_NL", "IQ4_XS"):
        return "Q5_K" if gqa >= 4 else None
    if mix in ("Q4_K_M", "Q5_K_M"):
        return "Q6_K" if _more_bits(layer, layers) else None
    if mix == "Q4_K_S":
        return "Q5_K" if layer < 4 else None
    if mix == "IQ3_S":
        return "Q4_K" if gqa >= 4 else None
    return {"Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}.get(mix)


def _down(mix: str, layer: int, layers: int, gqa: int) -> str | None:
    """ffn_down: its inputs have the largest outliers."""
    early = layer < layers // 8
    if mix == "Q3_K_M":
        return "Q5_K" if layer < layers // 16 else "Q4_K"
    if mix in ("Q4_K_M", "Q5_K_M"):
        return "Q6_K" if _more_bits(layer, layers) else None
    if mix == "IQ3_XXS":
        return "Q4_K" if early else "Q3_K"
    if mix in ("Q4_K_S", "IQ4_NL", "IQ4_XS"):
        return "Q5_K" if early else None
    if mix == "IQ3_M":
        return "Q4_K" if early else None
    return {"Q2_K": "Q3_K", "Q3_K_L": "Q5_K"}.get(mix)


def _low_bits(place: TensorPlace, layers: int, gqa: int) -> str | None:
    """IQ2_XXS and IQ2_XS."""
    if place.role == "attn_v":
        return "Q4_K" if gqa >= 4 else "Q2_K"
    if place.role == "ffn_down" and place.layer < layers // 8:
        return "Q2_K"
    return None
