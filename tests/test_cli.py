"""Every command of ``forgec`` as a user calls it: help, results, and what is printed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import forgec
import forgec.cli
from forgec.cli import COMMANDS, cli
from forgec.targets import target_names
from tests.cli_files import CPU, Forgec, compiled, finish, flip, one_error, start, tiny_model
from tests.gpu.random_weights import fill


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="module")
def package(model: Path) -> Path:
    return compiled(model, CPU, model.parent / "tiny-cpu", math="exact", kv="f32")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Forgec:
    return Forgec(capsys)


def test_version_and_overview(run: Forgec) -> None:
    assert run("--version").out == f"forgec, version {forgec.__version__}\n"
    said = run("--help")
    assert said.code == 0
    for name, (_, text) in COMMANDS.items():
        assert re.search(rf"^  {name} +{text.split()[0]}", said.out, re.MULTILINE)
    nothing = run()
    assert (nothing.code, nothing.out, nothing.err) == (2, "", said.out)


SUBCOMMANDS = ("golden record", "golden check", "golden quality", "golden types")


@pytest.mark.parametrize("name", [*COMMANDS, *SUBCOMMANDS])
def test_help_has_an_example_that_parses(run: Forgec, name: str) -> None:
    said = run(*name.split(), "--help")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"Usage: forgec {name}")
    examples = re.findall(r"^ +forgec (.+)$", said.out.partition("Example:")[2], re.MULTILINE)
    assert examples and all(e.startswith(name.split()[0]) for e in examples)
    for example in examples:
        words = example.replace('"Once upon a time"', "text").split()
        command, context = cli.get_command(None, words[0]), None  # type: ignore[arg-type]
        assert command is not None
        if words[0] == "golden":
            command, words = command.commands[words[1]], words[1:]  # type: ignore[attr-defined]
        context = command.make_context(words[0], words[1:])
        assert set(context.params) == {p.name for p in command.params if p.expose_value}


def test_compile_says_what_it_made(run: Forgec, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "tiny"
    said = run("compile", model, "--arch", CPU, "-o", output, "--ctx", "64")
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[0] == f"{output}: tiny llama (llama) for {CPU}"
    assert re.fullmatch(
        r"  \d+ kernels \(\d+ of \d+ objects from the cache\), 13 launches a token, math fast", lines[1]
    )
    assert re.fullmatch(
        r"  memory \d\.\d MiB: weights \d\.\d MiB, KV cache \(64 tokens, f16\) \d\.\d MiB, arena \d\.\d MiB",
        lines[2],
    )
    assert re.fullmatch(r"  compiled in \d+\.\d\d s \(.+\)", lines[3])
    assert lines[4:] == [f'  try: python {output} "Once upon a time"']
    manifest = json.loads((output / "manifest.json").read_text())
    assert (manifest["math"], manifest["kv"], manifest["model"]["context_length"]) == ("fast", "f16", 64)
    again = run("run", "--help")
    assert "forgec run build/model-gfx1100 --help" in again.out


def test_a_chat_template_from_a_file(run: Forgec, model: Path, tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}")
    output = tmp_path / "p"
    options = ("compile", model, "--arch", CPU, "-o", output, "--chat-template", template)
    assert run(*options).code == 0
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["tokenizer"]["chat_template"] == template.read_text()
    template.write_text("{% for %}")
    code, message, _ = run.refused(*options, "--force")
    assert code == 4 and message.startswith("the chat template does not render: ")
    template.unlink()
    assert run.refused(*options, "--force")[:2] == (
        2, f"cannot read '{template}': No such file or directory",
    )  # fmt: skip


def test_the_default_output_is_below_build(
    run: Forgec, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("compile", model, "--arch", CPU).code == 0
    assert (tmp_path / "build" / f"tiny-{CPU}" / "manifest.json").is_file()
    assert [p.name for p in (tmp_path / "build").iterdir()] == [f"tiny-{CPU}"]


def test_dump_dir_holds_every_product(run: Forgec, model: Path, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    assert run("compile", model, "--arch", "gfx1100", "-o", tmp_path / "p", "--dump-dir", dump).code == 0
    texts = sorted(p.name for p in dump.iterdir() if p.is_file())
    assert texts[0] == "00-import.txt" and texts[-1] == "program.txt"
    numbers = [int(name.partition("-")[0]) for name in texts[:-1]]
    assert numbers == list(range(len(numbers))) and len(numbers) > 5
    assert (dump / texts[0]).read_text() != (dump / texts[-2]).read_text()
    sources = {p.stem for p in (dump / "src").glob("*.hip")}
    assert (
        sources
        == {p.stem for p in (dump / "src").glob("*.s")}
        == {p.stem for p in (tmp_path / "p/src").iterdir()}
    )
    for name in sources:
        assert "amdgcn" in (dump / "src" / f"{name}.s").read_text()


def test_inspect(run: Forgec, model: Path) -> None:
    said = run("inspect", model)
    assert (said.code, said.err) == (0, "")
    assert (
        said.out
        == """\
tiny.gguf: tiny llama
  architecture      llama, 0.1 M parameters
  layers            2, embedding 64, feed-forward 96
  attention         4 heads, 2 KV heads of 16
  vocabulary        288 tokens (from metadata)
  RoPE              base 10000, scaling none
  trained context   128 tokens
  tensors           Q8_0 x 16, F32 x 5; 0.1 MiB
  tokenizer         byte-pair, 'smollm', 2 end tokens, chat template
  memory            context        KV f16        KV f32       KV q8_0  (weights + KV cache)
                        128       0.1 MiB       0.2 MiB             -
  compiles          yes
"""
    )
    facts = json.loads(run("inspect", model, "--json").out)
    assert facts["compiles"] is True and facts["problems"] == []
    assert facts["quant_types"] == {"Q8_0": 16, "F32": 5}
    weights = facts["weight_bytes"]
    assert facts["memory"]["128"] == {
        "f16": weights + 2 * 2 * 128 * 32 * 2,
        "f32": weights + 2 * 2 * 128 * 32 * 4,
    }


@pytest.mark.parametrize(
    ("form", "begins", "holds"),
    [
        ("text", "graph llama 'tiny llama'", "FusedLinear"),
        ("dot", "digraph", "->"),
        ("mermaid", "flowchart", "-->"),
        ("svg", "<svg", "</svg>"),
        ("html", "<!doctype html>", "<svg"),
    ],
)
def test_graph_in_every_form(
    run: Forgec, model: Path, tmp_path: Path, form: str, begins: str, holds: str
) -> None:
    said = run("graph", model, "--format", form)
    assert (said.code, said.err) == (0, "")
    assert said.out.lower().startswith(begins.lower()) and holds in said.out
    suffix = {"text": ".txt", "mermaid": ".mmd"}.get(form, f".{form}")
    file = tmp_path / f"graph{suffix}"
    written = run("graph", model, "-o", file)
    assert written.out == f"{file}: {form}, {len(file.read_text()) / 1024:.0f} KiB\n"
    assert file.read_text().rstrip("\n") == said.out.rstrip("\n")
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


def test_graph_before_fusion(run: Forgec, model: Path) -> None:
    before, after = (run("graph", model, "--stage", stage).out for stage in ("before", "after"))
    assert "RMSNorm" in before and "FusedLinear" not in before
    assert len(after.splitlines()) < len(before.splitlines())


def test_targets(run: Forgec) -> None:
    rows = run("targets").out.splitlines()
    assert [row.split()[0] for row in rows] == ["target", *target_names()]
    one = run("targets", "gfx942").out
    assert one.startswith("gfx942: Instinct MI300X") and "  wave = 64\n" in one and "  source: " in one


def test_doctor(run: Forgec) -> None:
    said = run("doctor")
    assert (said.code, said.err) == (0, "")
    names = re.findall(r"^(?:ok|--)  (.{19}) ", said.out, re.MULTILINE)
    assert [name.strip() for name in names] == [
        "compiler, AMD", "compiler, NVIDIA", "compiler, CPU", "hipcc", "package ziglang",
        "package hip-python", "package xllamacpp", "cpu", "ROCm runtime", "NVIDIA driver",
        "compile cache", "python",
    ]  # fmt: skip
    assert said.out.startswith("ok  compiler, AMD")


@pytest.mark.parametrize("arch", ["gfx1100", CPU])
def test_report(run: Forgec, model: Path, arch: str) -> None:
    reports = json.loads(run("report", model, "--arch", arch, "--json").out)
    assert all(r["bytes"] > 0 and r["roofline_us"] > 0 and r["spills"] == 0 for r in reports)
    text = run("report", model, "--arch", arch)
    assert (text.code, text.err) == (0, "")
    assert [line.split()[0] for line in text.out.splitlines()[1 : len(reports) + 1]] == [
        r["symbol"] for r in reports
    ]
    assert "a token at position 127: 13 launches" in text.out
    matvecs = [r for r in reports if r["symbol"].startswith("matvec") and "decode" in r["sequences"]]
    assert matvecs
    if arch != CPU:
        assert all(r["vgprs"] > 0 and r["occupancy"] > 0 and r["instructions"]["valu"] > 0 for r in reports)
        assert all(r["valu_per_weight_byte"] > 0 for r in matvecs)


def test_bench(run: Forgec, package: Path) -> None:
    arguments = ("bench", package, "--contexts", "3,0,4096", "--tokens", "4", "--prompt", "8",
                 "--repeat", "1", "--threads", "1")  # fmt: skip
    result = json.loads(run(*arguments, "--json").out)
    manifest = json.loads((package / "manifest.json").read_text())
    traffic = manifest["traffic"]
    at_3, at_0 = result["decode"]
    assert (at_3["context"], at_0["context"], result["skipped_contexts"]) == (3, 0, [4096])
    # The middle of four tokens behind three and a warm-up.
    expected = traffic["weight_bytes_per_token"] + 6 * traffic["kv_bytes_per_position"]
    assert at_3["bytes_per_token"] == expected
    assert at_3["milliseconds_per_token"] == pytest.approx(1e3 / at_3["tokens_per_second"])
    assert at_3["fraction"] == pytest.approx(expected * at_3["tokens_per_second"] / result["bandwidth"])
    assert result["prompt_tokens"] == 8 and result["prompt_tokens_per_second"] > 0
    stages = result["stages"]["table"]
    assert sum(stage["launches"] for stage in stages) == len(manifest["sequences"]["decode"])
    assert sum(stage["weight_bytes"] for stage in stages) == traffic["weight_bytes_per_token"]
    assert all(stage["seconds"] > 0 and stage["parts"] is None for stage in stages)
    text = run(*arguments).out
    assert text.startswith("tiny llama for x86-64-v3 (math exact) on ")
    assert "not measured: context 4096" in text and "stages at context 3" in text


def test_bench_refuses_what_does_not_fit(run: Forgec, package: Path) -> None:
    assert run.refused("bench", package, "--contexts", "5", "--tokens", "123", "--threads", "1") == (
        2,
        "128 tokens do not fit the package's context of 128",
        "choose shorter contexts or fewer tokens, or compile with a larger --ctx",
    )
    assert run.refused("bench", package, "--contexts", "1;2") == (
        2, "--contexts is '1;2', expected numbers such as 0,4096", "Separate by commas."
    )  # fmt: skip


def test_a_package_measures_itself(package: Path) -> None:
    said = finish(start([package, "--bench", "--contexts", "0", "--json", "--threads", "1"]))
    assert (said.code, said.err) == (0, "")
    assert [row["context"] for row in json.loads(said.out)["decode"]] == [0]
    said = finish(start([package, "--bench", "--contexts", "many"]))
    assert one_error(said.err)[0] == "argument --contexts: 'many' is no list of numbers such as 0,4096"


def test_compile_without_weights(run: Forgec, model: Path, tmp_path: Path) -> None:
    """A package without weights says so; filled with random ones it is complete, digests included."""
    output = tmp_path / "empty"
    assert run("compile", model, "--arch", CPU, "--no-weights", "-o", output).code == 0
    said = finish(start([output, "hello"]))
    assert (said.code, one_error(said.err)) == (8, (
        "the package was compiled without its weights",
        "compile the model without --no-weights, or fill in random ones (tests/gpu/random_weights.py)",
    ))  # fmt: skip
    assert not (output / "weights.bin").exists()
    fill(output)
    said = finish(start([output, "hello", "--max-tokens", "2", "--threads", "1", "--json"]))
    assert (said.code, said.err) == (0, "")
    assert len(json.loads(said.out)["tokens"]) == 2
    flip(output / "weights.bin", 5000)
    assert "does not match its digest" in finish(start([output, "hello", "--threads", "1"])).err


def test_run_hands_everything_on(package: Path) -> None:
    given = ["hello", "--max-tokens", "3", "--threads", "1"]
    direct = finish(start([package, *given]))
    assert finish(start(["-m", "forgec", "run", package, *given])) == direct
    assert (direct.code, direct.err) == (0, "")
    assert direct.out != "\n"
    said = finish(start(["-m", "forgec", "run", package, "--json"]))
    assert (said.code, one_error(said.err)[0]) == (2, "the prompt is empty")


def test_goldens_of_ones_own(run: Forgec, model: Path, package: Path, tmp_path: Path) -> None:
    """llama.cpp and the package agree on a model that neither has seen, and a wrong golden is found."""
    file = tmp_path / "tiny.golden.json"
    said = run(
        "golden", "record", model, "--package", package, "-o", file, "--tokens", "5",
        "--prompt", "hello", "--prompt", "once upon a time",
    )  # fmt: skip
    assert (said.code, said.err) == (0, "  prompt-1\n  prompt-2\n")
    assert re.fullmatch(rf"{re.escape(str(file))}: 2 prompts, 5 tokens each, from xllamacpp \S+\n", said.out)
    check = run("golden", "check", package, file)
    assert check.code == 0, check.out
    assert re.search(r"^  prompt-1 +5 of 5 tokens  equal", check.out, re.MULTILINE)
    data = json.loads(file.read_text())
    step = data["goldens"][1]["steps"][2]
    step["ids"] = step["ids"][::-1]
    file.write_text(json.dumps(data))
    wrong = run("golden", "check", package, file)
    assert wrong.code == 1
    assert re.search(r"^  prompt-2 +2 of 5 tokens  DIFFERENT", wrong.out, re.MULTILINE)
    assert run("golden", "check", package, file, "--tokens", "2").code == 0


def test_quality_against_oneself_is_perfect(run: Forgec, package: Path) -> None:
    said = run("golden", "quality", package, "--against", package, "--positions", "40")
    assert said.code == 0
    assert "top-1 agreement 100.00%, KL mean 0.000000" in said.out


def test_a_model_in_another_weight_type(run: Forgec, model: Path) -> None:
    said = run("golden", "types", model, "--type", "Q8_0", "--every", "1", "--positions", "24")
    assert (said.code, said.err) == (0, "")
    heading, row = said.out.splitlines()
    assert heading.split()[:3] == ["type", "matrices", "forgec"]
    name, matrices, perplexity, of_f32, of_own = row.split()
    assert (name, matrices) == ("Q8_0", "14") and float(perplexity) > 1
    assert abs(float(of_f32.rstrip("%"))) < 0.05 and abs(float(of_own.rstrip("%"))) < 5


# -- how it ends


def test_debug_shows_the_traceback(run: Forgec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(forgec.errors.GGUFError):
        run("--debug", "inspect", tmp_path / "none.gguf")
    monkeypatch.setenv("FORGEC_DEBUG", "1")
    with pytest.raises(forgec.errors.TargetError):
        run("targets", "none")


def test_a_defect_says_that_it_is_one(run: Forgec, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("forgec.commands.targets.get_target", fail)
    assert run.refused("targets", "gfx1100") == (
        70, "internal error: ZeroDivisionError: by zero",
        "this is a defect of forgec; run again with --debug and report the traceback",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [(KeyboardInterrupt(), 130, "interrupted"), (MemoryError(), 1, "this machine ran out of memory")],
)
def test_interrupts_and_memory(
    run: Forgec, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr("forgec.commands.targets.get_target", fail)
    said = run("targets", "gfx1100")
    assert (said.code, said.out) == (code, "")
    assert one_error(said.err) == (message, "")


def test_a_closed_pipe_ends_quietly(model: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    said = finish(start(["-m", "forgec", "graph", model], stdout=write))
    os.close(write)
    assert (said.code, said.err) == (141, "")


def test_a_full_disk_behind_standard_output(model: Path) -> None:
    with Path("/dev/full").open("w") as full:
        said = finish(start(["-m", "forgec", "inspect", model], stdout=full))
    assert (said.code, one_error(said.err)[0]) == (
        1,
        "the output cannot be read or written: No space left on device",
    )


def test_a_terminal_without_unicode_and_a_closed_one(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "tiny.gguf", metadata={"general.name": "tin \u2603"})
    said = finish(start(["-m", "forgec", "inspect", model], env={"PYTHONIOENCODING": "latin-1"}))
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("tiny.gguf: tin ?\n")
    command = f"exec {sys.executable} -m forgec targets >&-"
    done = subprocess.run(
        ["sh", "-c", command], cwd=Path(forgec.__file__).parent.parent, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
