"""``forgec inspect``: what a GGUF file is, whether it compiles, and the memory it will need."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from forgec.errors import ForgeError
from forgec.frontend.architectures import build_graph
from forgec.frontend.gguf import GGUFFile, open_gguf
from forgec.frontend.spec import ModelSpec, read_spec
from forgec.frontend.tokenizer import build_tokenizer
from forgec.plan.limits import check_limits
from forgec.plan.lower import kv_cache_bytes
from forgec.plan.stages.base import KV_BYTES

__all__ = ["command"]

#: Context lengths, in tokens, for which memory is shown (as far as the model was trained).
CONTEXTS = (2048, 4096, 8192, 16384, 32768, 131072)


@dataclass(frozen=True)
class Verdict:
    """Whether one part of the compiler takes the file, and if not why and what to do."""

    part: str
    problem: str = ""
    hint: str = ""


@click.command("inspect")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(ctx: click.Context, model: Path, as_json: bool) -> None:
    """Say what MODEL is, whether it compiles (and why not), and what memory it needs.

    Exits with 0 when the file compiles, with 4 when something in it is not supported.

    \b
    Example:
      forgec inspect model.gguf
    """
    with open_gguf(model) as gguf:
        spec = read_spec(gguf)
        verdicts = _verdicts(gguf, spec)
        facts = _facts(gguf, spec, verdicts)
    click.echo(json.dumps(facts, indent=1) if as_json else _text(model, facts))
    if any(v.problem for v in verdicts):
        ctx.exit(4)


def _verdicts(gguf: GGUFFile, spec: ModelSpec) -> tuple[Verdict, ...]:
    """Ask the parts of the compiler that can refuse a file; nothing is compiled."""
    parts = (
        ("layers", lambda: check_limits(build_graph(gguf, spec))),
        ("tokenizer", lambda: build_tokenizer(gguf.metadata)),
    )
    verdicts = []
    for part, attempt in parts:
        try:
            attempt()
            verdicts.append(Verdict(part))
        except ForgeError as error:
            verdicts.append(Verdict(part, error.message, error.hint))
    return tuple(verdicts)


def _facts(gguf: GGUFFile, spec: ModelSpec, verdicts: tuple[Verdict, ...]) -> dict[str, Any]:
    weights = sum(t.nbytes for t in gguf.tensors.values())
    return {
        "architecture": spec.architecture,
        "name": spec.name,
        "parameters": spec.parameter_count,
        "layers": spec.block_count,
        "embedding_length": spec.embedding_length,
        "feed_forward_length": spec.feed_forward_length,
        "heads": spec.head_count,
        "kv_heads": spec.head_count_kv,
        "head_length": spec.key_length,
        "vocabulary": spec.vocab_size,
        "vocabulary_from": spec.vocab_size_source,
        "tied_embeddings": spec.tied_embeddings,
        "trained_context": spec.context_length,
        "rope": {"base": spec.rope.freq_base, "scaling": spec.rope.scaling},
        "quant_types": dict(spec.quant_types),
        "weight_bytes": weights,
        "memory": {
            str(length): {kv: weights + kv_cache_bytes(spec, length, kv) for kv in KV_BYTES}
            for length in sorted({c for c in CONTEXTS if c <= spec.context_length} | {spec.context_length})
        },
        "compiles": not any(v.problem for v in verdicts),
        "problems": [{"part": v.part, "problem": v.problem, "hint": v.hint} for v in verdicts if v.problem],
    }


def _text(model: Path, facts: dict[str, Any]) -> str:
    types = ", ".join(f"{name} x {count}" for name, count in facts["quant_types"].items())
    lines = [
        f"{model.name}: {facts['name']}",
        f"  architecture      {facts['architecture']}, {facts['parameters'] / 1e6:,.1f} M parameters",
        f"  layers            {facts['layers']}, embedding {facts['embedding_length']}, "
        f"feed-forward {facts['feed_forward_length']}",
        f"  attention         {facts['heads']} heads, {facts['kv_heads']} KV heads of {facts['head_length']}",
        f"  vocabulary        {facts['vocabulary']} tokens (from {facts['vocabulary_from']})"
        f"{', embeddings tied to the output' if facts['tied_embeddings'] else ''}",
        f"  RoPE              base {facts['rope']['base']:g}, scaling {facts['rope']['scaling']}",
        f"  trained context   {facts['trained_context']} tokens",
        f"  tensors           {types}; {facts['weight_bytes'] / 2**20:,.1f} MiB",
        "  memory            context    KV f16       KV f32      (weights + KV cache)",
    ]
    for length, sizes in facts["memory"].items():
        lines.append(
            f"  {'':<16}{length:>9}  {sizes['f16'] / 2**20:>9,.1f} MiB {sizes['f32'] / 2**20:>9,.1f} MiB"
        )
    if facts["compiles"]:
        lines.append("  compiles          yes")
    for problem in facts["problems"]:
        lines.append(f"  does not compile  {problem['part']}: {problem['problem']}")
        lines += [f"                    {problem['hint']}"] if problem["hint"] else []
    return "\n".join(lines)
