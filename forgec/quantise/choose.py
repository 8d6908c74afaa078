"""Which tensors are requantised and to what: a model's tensors and the user's wish in, a type for each out.

The rules are llama.cpp's: norms, vectors and routers keep their type, the output matrix gets at least Q6_K,
and rows that are no multiple of a type's block take a related type with smaller blocks. No bytes are touched
here. Source: llama.cpp's src/llama-quant.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from forgec.errors import UnsupportedModelError, UsageError
from forgec.frontend.gguf import TensorInfo
from forgec.frontend.quant import QUANT_BY_NAME, QuantType
from forgec.quantise.encode import QUANTISABLE

__all__ = ["Choice", "merged_type", "new_types"]

#: Types from which nothing has been lost yet.
FLOAT_TYPES = ("F32", "F16", "BF16")
#: Types of numbers that are no weights.
NUMBERS = ("I8", "I16", "I32", "I64", "F64")
#: What takes rows that are no multiple of 256 elements; rows that are no multiple of 32 stay F16.
SMALLER_BLOCKS = {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
#: Types that are good enough for the output matrix; with all others it becomes Q6_K.
FINE_TYPES = ("Q6_K", "Q8_0", *FLOAT_TYPES)
#: Matrices by parts of their names that are small and sensitive, or no operand of a product.
KEPT = (
    *("_norm.", "ffn_gate_inp.", "ffn_gate_inp_shexp.", "position_embd.", "token_types.", "rope_freqs."),
    *("rope_factors_", "attn_rel_b.", "ssm_conv1d.", "shortconv."),
)


@dataclass(frozen=True)
class Choice:
    """The new type of a tensor, and why it is not the one that was asked for ("" where it is)."""

    type: QuantType
    reason: str = ""


def fitting(type_name: str, columns: int, reason: str = "") -> Choice:
    """``type_name``, or the type that takes its place for rows of ``columns`` elements."""
    block = QUANT_BY_NAME[type_name].block
    if columns % block == 0:
        return Choice(QUANT_BY_NAME[type_name], reason)
    smaller = QUANT_BY_NAME[SMALLER_BLOCKS.get(type_name, "F16")]
    if columns % smaller.block:
        smaller = QUANT_BY_NAME["F16"]
    return Choice(smaller, f"{type_name} needs rows of whole blocks of {block}")


def new_types(tensors: Mapping[str, TensorInfo], type_name: str, *, requantize: bool) -> dict[str, Choice]:
    """The new type of every tensor that ``--quantize type_name`` changes.

    Raises UsageError for an unknown type, or when a matrix is quantised already and ``requantize`` is not
    set.
    """
    if type_name not in QUANTISABLE:
        raise UsageError(
            f"weights cannot be quantised to '{type_name}'", f"Choose one of: {', '.join(QUANTISABLE)}."
        )
    output = "output.weight" if "output.weight" in tensors else "token_embd.weight"
    choices: dict[str, Choice] = {}
    for name, info in tensors.items():
        if len(info.shape) < 2 or not name.endswith(".weight") or any(part in name for part in KEPT):
            continue
        if name == output and type_name not in FINE_TYPES:
            choice = fitting("Q6_K", info.shape[-1], "the output matrix")
        else:
            choice = fitting(type_name, info.shape[-1])
        if choice.type == info.type:
            continue
        if info.type.name not in FLOAT_TYPES and not requantize:
            raise UsageError(
                f"tensor '{name}' is quantised already, to {info.type.name}",
                "Start from an F16, BF16 or F32 file, or add --requantize and accept both roundings.",
            )
        choices[name] = choice
    return choices


def merged_type(info: TensorInfo) -> Choice:
    """The type of a tensor after an adapter was merged into it: its own, where that can be written.

    The types that need an importance matrix and a search over a code book become Q4_K.
    """
    if info.type.name in QUANTISABLE:
        return Choice(info.type)
    if info.type.name in NUMBERS:
        raise UnsupportedModelError(
            f"no adapter can be merged into tensor '{info.name}' of type {info.type.name}"
        )
    return fitting("Q4_K", info.shape[-1], f"{info.type.name} cannot be written")
