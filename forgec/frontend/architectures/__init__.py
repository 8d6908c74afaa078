"""From an open GGUF file and its specification to a graph, one module per model family.

The tensor table and the spec go in, a verified graph of unfused ops comes out. A family is a function in a
module of this folder and a row of ``ARCHITECTURES``; nothing here reads weight data or knows a target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from forgec.errors import UnsupportedModelError
from forgec.frontend.architectures import (
    arcee,
    command_r,
    deepseek2,
    gemma,
    glm4,
    gpt,
    gpt_oss,
    granite,
    llama,
    moe,
    olmo,
    phi2,
    qwen3,
    smollm3,
    stablelm,
)
from forgec.frontend.architectures.builders import TensorTable
from forgec.frontend.foreign import file_kind, foreign_operations
from forgec.frontend.gguf import GGUFFile
from forgec.frontend.metadata import ModelKeys
from forgec.frontend.spec import ModelSpec, read_spec
from forgec.ir.graph import Graph

__all__ = ["ARCHITECTURES", "Build", "build_graph", "supported_spec"]

#: What a row of the table is: raises as ``build_graph``.
Build = Callable[[TensorTable, ModelSpec], Graph]

ARCHITECTURES: Mapping[str, Build] = MappingProxyType(
    {
        "arcee": arcee.build,
        "bloom": gpt.bloom,
        "chatglm": llama.build,
        "cohere2": command_r.build2,
        "command-r": command_r.build,
        "deepseek2": deepseek2.build,
        "exaone": llama.build,
        "falcon": gpt.falcon,
        "gemma": gemma.build,
        "gemma2": gemma.build2,
        "gemma3": gemma.build3,
        "glm4": glm4.build,
        "gpt-oss": gpt_oss.build,
        "gpt2": gpt.gpt2,
        "gptneox": gpt.gptneox,
        "granite": granite.build,
        "granitemoe": moe.granitemoe,
        "internlm2": llama.build,
        "llama": llama.build,
        "mpt": gpt.mpt,
        "nemotron": gpt.nemotron,
        "olmo": olmo.build,
        "olmo2": olmo.build2,
        "olmoe": moe.olmoe,
        "phi2": phi2.build,
        "phi3": llama.build,
        "qwen2": llama.build,
        "qwen2moe": moe.qwen2moe,
        "qwen3": qwen3.build,
        "qwen3moe": moe.qwen3moe,
        "smollm3": smollm3.build,
        "stablelm": stablelm.build,
        "starcoder2": gpt.starcoder2,
    }
)


def supported_spec(gguf: GGUFFile, architectures: Mapping[str, Build] = ARCHITECTURES) -> ModelSpec:
    """``read_spec`` of a model that can be built: other files lack keys, which would be the lesser news.

    Raises UnsupportedModelError for a file that is no language model and for an unknown architecture, and as
    ``read_spec``.
    """
    other = file_kind(gguf.metadata)
    if other is not None:
        raise UnsupportedModelError(f"'{gguf.path.name}' is {other[0]}", other[1])
    architecture = ModelKeys.of(gguf).architecture
    if architecture not in architectures:
        lacking = [foreign.sentence for foreign in foreign_operations(gguf.tensors, gguf.metadata)]
        raise _unsupported(architecture, architectures, *lacking[:1])
    return read_spec(gguf)


def build_graph(
    gguf: TensorTable, spec: ModelSpec, architectures: Mapping[str, Build] = ARCHITECTURES
) -> Graph:
    """The graph of one step of the model, of unfused ops only; the head is for one row.

    Raises UnsupportedModelError for an architecture, tensor or type that forgec cannot run, GGUFError for a
    missing tensor or a shape that contradicts the metadata.
    """
    build = architectures.get(spec.architecture)
    if build is None:
        raise _unsupported(spec.architecture, architectures)
    return build(gguf, spec)


def _unsupported(name: str, architectures: Mapping[str, Build], *reasons: str) -> UnsupportedModelError:
    hints = [f"{reason[0].upper()}{reason[1:]}." for reason in reasons]
    hints.append(f"Supported: {', '.join(architectures)}.")
    return UnsupportedModelError(f"architecture '{name}' is not supported", " ".join(hints))
