"""``forgec inspect``: what a GGUF file is, whether it compiles, and the memory it will need."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import click

from forgec.errors import UnsupportedModelError
from forgec.frontend.spec import ModelSpec
from forgec.frontend.tokenizer import TokenizerSpec
from forgec.inspection import Inspection, TargetNeeds, inspect_file
from forgec.ir.graph import Graph
from forgec.plan.kvcache import kv_cache_bytes, place_caches
from forgec.plan.program import CompileOptions
from forgec.plan.stages.cache import KV_TYPES, rows_bytes
from forgec.targets import get_target

__all__ = ["command"]

#: Context lengths, in tokens, for which memory is shown (as far as the model was trained).
CONTEXTS = (2048, 4096, 8192, 16384, 32768, 131072)


@click.command("inspect")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--arch", multiple=True, metavar="A", help="Plan for this chip, too; may be repeated.")
@click.option(
    "--ctx",
    "context",
    type=click.IntRange(min=1),
    metavar="N",
    help="Context length of the plans, in tokens.",
)
@click.option("--kv", type=click.Choice(KV_TYPES), default="f16", show_default=True,
              help="KV cache of the plans.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(
    ctx: click.Context, model: Path, arch: tuple[str, ...], context: int | None, kv: str, as_json: bool
) -> None:
    """Say what MODEL is, whether it compiles (and why not), and what memory it needs.

    With --arch the model is planned for that chip, too: weights as packed, KV cache, arena, launches.
    Exits with 0 when the file compiles, with 4 when something in it is not supported, with 5 when it does not
    fit a chip.

    \b
    Example:
      forgec inspect model.gguf
      forgec inspect model.gguf --arch gfx1100 --arch gfx942 --ctx 32768
    """
    targets = tuple(get_target(name) for name in arch)
    found = inspect_file(model, targets, CompileOptions(context=context, kv_dtype=kv))
    click.echo(json.dumps(_facts(found), indent=1) if as_json else _text(found))
    ctx.exit(found.exit_code)


# -- JSON


def _facts(found: Inspection) -> dict[str, Any]:
    spec = found.spec
    return {
        "kind": found.kind,
        "architecture": found.architecture,
        "name": found.name,
        "gguf_version": found.version,
        "shards": found.shards,
        "parameters": found.parameters,
        **({} if spec is None else _numbers(spec)),
        "quant_types": dict(found.quant_types),
        "types_without_kernels": list(found.types_without_kernels),
        "weight_bytes": found.weight_bytes,
        "memory": {} if spec is None else _memory(found, spec),
        "tokenizer": None if found.tokenizer is None else _tokenizer(found.tokenizer),
        "targets": {needs.target: _target(needs) for needs in found.targets},
        "compiles": found.compiles,
        "problems": [{"part": p.part, "problem": p.problem, "hint": p.hint} for p in found.problems],
    }


def _numbers(spec: ModelSpec) -> dict[str, Any]:
    return {
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
        "experts": None if spec.experts is None else asdict(spec.experts),
        "latent_attention": None if spec.latent is None else asdict(spec.latent),
    }


def _memory(found: Inspection, spec: ModelSpec) -> dict[str, dict[str, int]]:
    """Bytes of weights and KV cache by context length and type of the cache, where it can be of that type."""
    lengths = sorted({c for c in CONTEXTS if c <= spec.context_length} | {spec.context_length})
    rows: dict[str, dict[str, int]] = {str(length): {} for length in lengths}
    for length, kv in product(lengths, KV_TYPES):
        with contextlib.suppress(UnsupportedModelError):
            rows[str(length)][kv] = found.weight_bytes + _cache_bytes(found.graph, spec, length, kv)
    return rows


def _cache_bytes(graph: Graph | None, spec: ModelSpec, context: int, kv: str) -> int:
    """Bytes of the KV cache; without a graph every layer is taken to keep the whole context."""
    if graph is not None:
        return kv_cache_bytes(place_caches(graph, context, min(CompileOptions().chunk, context), kv))
    rows = spec.block_count * spec.head_count_kv * context
    return rows_bytes(kv, rows, spec.key_length) + rows_bytes(kv, rows, spec.value_length)


def _tokenizer(spec: TokenizerSpec) -> dict[str, Any]:
    return {
        "model": spec.model,
        "pre": spec.pre,
        "tokens": spec.vocab_size,
        "bos_id": spec.bos_id,
        "eos_id": spec.eos_id,
        "eog_ids": list(spec.eog_ids),
        "add_bos": spec.add_bos,
        "fill_in_the_middle": asdict(spec.fim),
        "chat_template": spec.chat_template is not None,
    }


def _target(needs: TargetNeeds) -> dict[str, Any]:
    if needs.problem is not None:
        return {"compiles": False, "problem": needs.problem.problem, "hint": needs.problem.hint}
    return {
        "compiles": True,
        "context": needs.context,
        "kv": needs.kv_dtype,
        "bytes": dict(needs.buffers or {}),
        "kernels": needs.kernels,
        "launches_per_token": needs.launches,
    }


# -- text


def _experts_text(spec: ModelSpec) -> tuple[str, ...]:
    """The line about a mixture of experts, where there is one."""
    experts = spec.experts
    if experts is None:
        return ()
    length = experts.feed_forward_length or spec.feed_forward_length
    more = "" if not (experts.shared_count or experts.shared_feed_forward_length) else ", and a shared one"
    return (f"  experts           {experts.used} of {experts.count} a token, feed-forward {length}{more}",)


def _text(found: Inspection) -> str:
    types = ", ".join(f"{name} x {count}" for name, count in found.quant_types.items()) or "none"
    shards = f" in {found.shards} files" if found.shards > 1 else ""
    lines = [
        f"{found.path.name}: {found.name}",
        f"  architecture      {found.architecture or 'unknown'}, {found.parameters / 1e6:,.1f} M parameters",
        *(() if found.spec is None else _number_lines(found.spec, _positions(found.graph, found.spec))),
        f"  tensors           {types}; {_mib(found.weight_bytes)}{shards}",
        *(() if found.tokenizer is None else _tokenizer_lines(found.tokenizer)),
        *(() if found.spec is None else _memory_lines(found, found.spec)),
    ]
    if found.compiles:
        lines.append("  compiles          yes")
    for problem in found.problems:
        lines.append(f"  does not compile  {problem.part}: {problem.problem}")
        lines += [f"{'':<20}{problem.hint}"] if problem.hint else []
    if found.types_without_kernels:
        lines.append(f"  without kernels   {', '.join(found.types_without_kernels)}")
    for needs in found.targets:
        lines += _target_lines(needs)
    return "\n".join(lines)


def _positions(graph: Graph | None, spec: ModelSpec) -> str:
    """The line that says how the model knows positions: by the graph, or else as the metadata have it."""
    ropes = (
        [spec.rope] if graph is None else [v.rope for v in graph.of_kind("constant") if v.rope is not None]
    )
    if ropes:
        return f"  RoPE              {'; '.join(f'base {r.freq_base:g}, scaling {r.scaling}' for r in ropes)}"
    slopes = graph is not None and any(getattr(node.op, "alibi", 0.0) for node in graph.topo())
    return f"  positions         {'ALiBi' if slopes else 'learned'}"


def _number_lines(spec: ModelSpec, positions: str) -> tuple[str, ...]:
    return (
        f"  layers            {spec.block_count}, embedding {spec.embedding_length}, "
        f"feed-forward {spec.feed_forward_length}",
        *_experts_text(spec),
        f"  attention         {spec.head_count} heads, {spec.head_count_kv} KV heads of {spec.key_length}",
        f"  vocabulary        {spec.vocab_size} tokens (from {spec.vocab_size_source})"
        f"{', embeddings tied to the output' if spec.tied_embeddings else ''}",
        positions,
        f"  trained context   {spec.context_length} tokens",
    )


def _tokenizer_lines(spec: TokenizerSpec) -> tuple[str, ...]:
    kind = "SentencePiece" if spec.model == "llama" else f"byte-pair, '{spec.pre}'"
    parts = [kind, f"{len(spec.eog_ids)} end tokens"]
    parts += ["begin token added"] if spec.add_bos else []
    parts += ["fill-in-the-middle"] if spec.fim.complete else []
    parts += ["chat template" if spec.chat_template is not None else "no chat template"]
    return (f"  tokenizer         {', '.join(parts)}",)


def _memory_lines(found: Inspection, spec: ModelSpec) -> list[str]:
    heading = "".join(f"{f'KV {kv}':>14}" for kv in KV_TYPES)
    lines = [f"  memory            context{heading}  (weights + KV cache)"]
    for length, sizes in _memory(found, spec).items():
        cells = "".join(f"{_mib(sizes[kv]) if kv in sizes else '-':>14}" for kv in KV_TYPES)
        lines.append(f"  {'':<16}{length:>9}{cells}")
    return lines


def _target_lines(needs: TargetNeeds) -> list[str]:
    if needs.problem is not None:
        hint = needs.problem.hint
        return [f"  {needs.target:<18}no: {needs.problem.problem}", *([f"{'':<20}{hint}"] if hint else [])]
    buffers = dict(needs.buffers or {})
    limit = f" of {needs.memory_bytes / 2**30:.0f} GiB" if needs.memory_bytes else ""
    cache = f"KV cache {_mib(buffers['kv'])} ({needs.context} tokens, {needs.kv_dtype})"
    return [
        f"  {needs.target:<18}yes, {_mib(sum(buffers.values()))}{limit}, {needs.launches} launches a token",
        f"{'':<20}weights {_mib(buffers['weights'])}, {cache}, arena {_mib(buffers['arena'])}",
    ]


def _mib(count: int, width: int = 0) -> str:
    return f"{count / 2**20:>{width},.1f} MiB"
