"""``forgec golden``: record what llama.cpp says, and see how close a package comes to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from forgec.errors import UsageError
from forgec.package.loader import loaded, package_path
from forgec.package.output import check_file, write_text

__all__ = ["command"]


@click.group("golden")
def command() -> None:
    """Record and check greedy tokens and logits.

    \b
    Example:
      forgec golden record model.gguf --package build/model-cpu -o model.golden.json
      forgec golden check build/model-cpu model.golden.json
      forgec golden quality build/model-fast --against build/model-exact --model model.gguf
    """


DEVICE = click.option("--device", help="Device, as for the package.")
THREADS = click.option("--threads", type=click.IntRange(1), help="CPU threads.")


@command.command("record", short_help="Record llama.cpp's greedy tokens and best logits.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--package", type=click.Path(path_type=Path), required=True,
              help="A package of the same model: its tokenizer encodes the prompts.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Golden file to write.")
@click.option("--tokens", type=click.IntRange(1), default=64, show_default=True, help="Tokens per prompt.")
@click.option("--prompt", "texts", multiple=True, help="Your own prompt(s) instead of the built-in ones.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="llama.cpp's threads.")
def record(
    model: Path, package: Path, output: Path, tokens: int, texts: tuple[str, ...], threads: int
) -> None:
    """Record greedy tokens and the best logits of MODEL from llama.cpp (needs the extra 'golden').

    \b
    Example:
      forgec golden record model.gguf --package build/model-cpu -o model.golden.json
    """
    from forgec.frontend.gguf import open_gguf
    from forgec.frontend.spec import read_spec
    from forgec.golden.prompts import PROMPTS, Prompt
    from forgec.golden.record import golden_text
    from forgec.golden.record import record as record_goldens

    if "" in texts:
        raise UsageError("a prompt is empty", "Give --prompt a text.")
    check_file(output)
    with open_gguf(model) as gguf:
        read_spec(gguf)  # a file that llama.cpp cannot mean is refused before the package is loaded
    prompts = tuple(Prompt(f"prompt-{i}", text) for i, text in enumerate(texts, 1)) or PROMPTS
    with loaded(package) as runner:
        if not runner.manifest.tokenizer.get("chat_template"):
            prompts = tuple(p for p in prompts if not p.chat)

        def encode(prompt: Prompt) -> list[int]:
            if prompt.chat:
                return list(runner.encode_chat([{"role": "user", "content": prompt.text}]))
            return list(runner.tokenizer.encode(prompt.text))

        made, goldens = record_goldens(
            model, encode, count=tokens, threads=threads, prompts=prompts,
            progress=lambda name: click.echo(f"  {name}", err=True),
        )  # fmt: skip
    write_text(output, golden_text(made, goldens))
    click.echo(f"{output}: {len(goldens)} prompts, {tokens} tokens each, from {made['oracle']}")


@command.command("check", short_help="Compare a package with a golden file.")
@click.argument("package", type=click.Path(path_type=Path))
@click.argument("golden", type=click.Path(path_type=Path))
@click.option("--tokens", type=click.IntRange(1), help="Compare only so many tokens per prompt.")
@DEVICE
@THREADS
@click.pass_context
def check(
    ctx: click.Context,
    package: Path,
    golden: Path,
    tokens: int | None,
    device: str | None,
    threads: int | None,
) -> None:
    """Compare PACKAGE with a GOLDEN file; exits with 1 when a prompt differs.

    A step may differ where the two best logits of the golden are closer than 1e-3.

    \b
    Example:
      forgec golden check build/model-cpu model.golden.json
    """
    from forgec.golden.record import check as compare
    from forgec.golden.record import load

    package_path(package)
    made, goldens = load(golden)
    with loaded(package, device, threads) as model:
        results = compare(model, goldens, limit=tokens)
    click.echo(f"golden: {made['oracle']}, {made['method']}")
    for r in results:
        verdict = "equal" if r.equal == r.steps else "tie" if r.tie else "DIFFERENT"
        click.echo(
            f"  {r.name:<12} {r.equal:3d} of {r.steps} tokens  {verdict:<9} "
            f"largest log-prob difference {r.error:.2e}"
        )
    ctx.exit(0 if all(r.passed for r in results) else 1)


@command.command("quality", short_help="Perplexity, agreement and KL divergence of a package.")
@click.argument("package", type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), help="Package taken as exact, e.g. --math exact.")
@click.option("--model", type=click.Path(path_type=Path),
              help="The GGUF file: also measure llama.cpp's own run against its F32 weights.")  # fmt: skip
@click.option("--text", type=click.Path(path_type=Path),
              help="Text file; default: a text that every Python carries.")  # fmt: skip
@click.option("--positions", type=click.IntRange(2), default=2048, show_default=True,
              help="Tokens of the text to compare.")  # fmt: skip
@DEVICE
@THREADS
def quality(
    package: Path,
    against: Path | None,
    model: Path | None,
    text: Path | None,
    positions: int,
    device: str | None,
    threads: int | None,
) -> None:
    """Perplexity of PACKAGE on a text, and its agreement and KL divergence from an exact one.

    \b
    Example:
      forgec golden quality build/model-fast --against build/model-exact --model model.gguf
    """
    from forgec.golden import quality as q

    for needed in (package, against):
        if needed is not None:
            package_path(needed)
    words = _read_text(text) if text else q.standard_text()
    with loaded(package, device, threads) as subject:
        tokens = list(subject.tokenizer.encode(words))[:positions]
        if len(tokens) < positions:
            raise UsageError(
                f"the text has {len(tokens)} tokens, {positions} were asked for",
                "Give a longer --text or fewer --positions.",
            )
        own = q.Scores.of(q.windowed(subject.logits, tokens, subject.engine.context_length), tokens)
    click.echo(f"{package}: perplexity {own.perplexity:.4f} over {own.positions} positions")
    if against is not None:
        with loaded(against, device, threads) as exact:
            base = q.Scores.of(q.windowed(exact.logits, tokens, exact.engine.context_length), tokens)
        click.echo(f"{against}: perplexity {base.perplexity:.4f}")
        click.echo(f"  {package} against {against}: {q.divergence(base, own)}")
    if model is not None:
        _llama_cpp(model, tokens, own, threads or 2)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read '{path}': {error.strerror}", "Check --text.") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"'{path}' is not a text in UTF-8", "Convert it, or choose another --text."
        ) from error


def _llama_cpp(model: Path, tokens: list[int], own: Any, threads: int) -> None:
    """llama.cpp on the given file and on its F32 weights, beside the package."""
    from forgec.golden import quality as q

    given, exact = q.llama_cpp_scores(model, tokens, threads)
    click.echo(f"llama.cpp on {model.name}: perplexity {given.perplexity:.4f}")
    click.echo(f"llama.cpp on its weights in F32: perplexity {exact.perplexity:.4f}")
    click.echo(f"  llama.cpp's quantised run against its F32 run: {q.divergence(exact, given)}")
    click.echo(f"  this package against llama.cpp's F32 run: {q.divergence(exact, own)}")
    for name, scores in (("F32", exact), ("quantised", given)):
        ratio = own.perplexity / scores.perplexity - 1
        click.echo(f"  perplexity against llama.cpp's {name} run: {ratio:+.3%}")


@command.command("types", short_help="Perplexity of a model in other weight types, here and in llama.cpp.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--type", "names", multiple=True, metavar="TYPE", help="Types to try; default: all.")
@click.option("--arch", default="x86-64-v3", show_default=True, help="Target chip.")
@click.option("--every", type=click.IntRange(1), default=8, show_default=True,
              help="Change the matrices of every N-th layer.")  # fmt: skip
@click.option("--positions", type=click.IntRange(2), default=512, show_default=True,
              help="Tokens of the text to compare.")  # fmt: skip
@DEVICE
@THREADS
def types(
    model: Path,
    names: tuple[str, ...],
    arch: str,
    every: int,
    positions: int,
    device: str | None,
    threads: int | None,
) -> None:
    """Write MODEL with layers in each weight type, and compare its perplexity with llama.cpp's.

    llama.cpp runs each file as it is, where it rounds activations to 8 bits, and on its weights in F32.

    \b
    Example:
      forgec golden types model.gguf --type Q4_K --type IQ3_S
    """
    from forgec.frontend.quant import QUANT_BY_NAME

    known = [name for name, quant in QUANT_BY_NAME.items() if quant.weights]
    for name in names:
        if name not in known:
            raise UsageError(f"weight type '{name}' is not known", f"Known: {', '.join(known)}.")
    click.echo(f"{'type':<8} {'matrices':>8} {'forgec':>10} {'of F32':>9} {'of its own run':>15}")
    for name in names or known:
        click.echo(_type_row(model, name, arch, every, positions, device, threads))


def _type_row(
    model: Path, name: str, arch: str, every: int, positions: int, device: str | None, threads: int | None
) -> str:
    """One line: perplexity of a package of the changed file, and its ratios to llama.cpp's two runs."""
    import tempfile

    from forgec.compiler import compile_model
    from forgec.config import load_config
    from forgec.frontend.gguf import open_gguf
    from forgec.frontend.quant import QUANT_BY_NAME
    from forgec.frontend.spec import read_spec
    from forgec.golden import quality as q
    from forgec.golden.rewrite import write_type
    from forgec.plan.program import CompileOptions
    from forgec.toolchain import open_cache

    with tempfile.TemporaryDirectory(prefix="forgec-types-") as folder:
        changed, package = Path(folder) / "model.gguf", Path(folder) / "package"
        matrices = write_type(model, changed, QUANT_BY_NAME[name], every)
        with open_gguf(changed) as gguf:
            context = min(q.WINDOW, read_spec(gguf).context_length)
        options = CompileOptions(math="exact", context=context)
        compile_model(changed, arch, package, options, cache=open_cache(load_config())[0])
        with loaded(package, device, threads) as subject:
            tokens = list(subject.tokenizer.encode(q.standard_text()))[:positions]
            own = q.Scores.of(q.windowed(subject.logits, tokens, context), tokens)
        given, exact = q.llama_cpp_scores(changed, tokens, threads or 2)
    ratios = [own.perplexity / other.perplexity - 1 for other in (exact, given)]
    return f"{name:<8} {matrices:>8} {own.perplexity:>10.4f} {ratios[0]:>+9.3%} {ratios[1]:>+15.3%}"
