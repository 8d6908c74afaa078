"""Weights changed at compile time: float matrices requantised, LoRA adapters merged. Files are only read."""

from forgec.quantise.encode import QUANTISABLE, quantise
from forgec.quantise.lora import AdapterFile, parse_adapter
from forgec.quantise.model import Change, EditedFile, WeightOptions, open_model

__all__ = [
    "QUANTISABLE",
    "AdapterFile",
    "Change",
    "EditedFile",
    "WeightOptions",
    "open_model",
    "parse_adapter",
    "quantise",
]
