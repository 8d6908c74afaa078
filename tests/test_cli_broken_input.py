"""Broken input on the command line: one clear error with its exit code, and nothing left behind."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forgec.compiler import compile_model
from forgec.config import load_config
from forgec.ir.shapes import EXECUTABLE_TYPES
from forgec.synth.shapes import SHAPES
from forgec.targets import get_target, target_names
from forgec.toolchain import open_cache
from tests.cli_files import CPU, Forgec, compiled, finish, one_error, start, tiny_model
from tests.smollm2 import require_smollm2

CHOOSE = "Choose another path with -o."
#: Columns in whole super-blocks of 256.
K_SHAPE = {"embedding_length": 256, "feed_forward_length": 256, "key_length": 64}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="module")
def original(model: Path) -> Path:
    return compiled(model, CPU, model.parent / "original")


@pytest.fixture
def package(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "tiny")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Forgec:
    return Forgec(capsys)


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A folder for outputs, in which a refusal must leave nothing."""
    folder = tmp_path / "room"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []


# -- arguments


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        ("nonsense", 2, "no command 'nonsense'",
         "commands: compile, run, inspect, graph, targets, doctor, report, bench, tune, synth, golden"),
        ("--nope", 2, "No such option '--nope'.", "'forgec --help' lists arguments and options"),
        ("compile", 2, "Missing argument 'MODEL'.", "'forgec compile --help' lists arguments and options"),
        ("compile @model", 2, "Missing option '--arch'.",
         "'forgec compile --help' lists arguments and options"),
        ("compile @model --arch gfx1100 more", 2, "Got unexpected extra argument (more)",
         "'forgec compile --help' lists arguments and options"),
        ("compile @model --arch gfx1100 --math 8", 2,
         "Invalid value for '--math': '8' is not one of 'fast', 'exact'.",
         "'forgec compile --help' lists arguments and options"),
        ("compile @model --arch gfx1100 --ctx 0", 2, "Invalid value for '--ctx': 0 is not in the range x>=1.",
         "'forgec compile --help' lists arguments and options"),
        ("compile @model --arch gfx1100 --ctx 129", 5,
         "context of 129 tokens is outside 1..128, the model's trained context",
         "Choose --ctx between 1 and 128."),
        ("compile @model --arch GFX1100", 5, "unknown target 'GFX1100'",
         f"did you mean 'gfx1100'? known targets: {', '.join(target_names())}"),
        ("compile none.gguf --arch gfx1100", 3, "'none.gguf' does not exist",
         "Check the path of the .gguf file."),
        ("compile . --arch gfx1100", 3, "'.' is a directory", "Give the path of a .gguf file inside it."),
        ("inspect /dev/null", 3, "'/dev/null' is not a regular file", "Give the path of a .gguf file."),
        ("graph @model --arch none", 5,
         "unknown target 'none'", f"known targets: {', '.join(target_names())}"),
        ("graph @model -o .", 2, "cannot write '.': it is a folder", "Choose a writable path with -o."),
        ("graph @model -o none/graph.svg", 2, "cannot write 'none/graph.svg': there is no folder 'none'",
         "Choose a writable path with -o."),
        ("report @model --arch gfx1100 --position 128", 2,
         "position 128 is outside the context of 128 tokens",
         "Choose a smaller --position or a larger --ctx."),
        ("targets none", 5, "unknown target 'none'", f"known targets: {', '.join(target_names())}"),
        ("run", 2, "Missing argument 'PACKAGE'.", "'forgec run --help' lists arguments and options"),
        ("run none text", 8, "package 'none' does not exist", "Make one with 'forgec compile'."),
        ("run . text", 8, "'.' is not a package: it has no manifest.json", "Make one with 'forgec compile'."),
        ("bench @model", 8, "'@model' is not a package: it has no manifest.json",
         "Make one with 'forgec compile'."),
        ("synth Llama-9", 2, "there is no model shape 'Llama-9'", f"Known: {', '.join(SHAPES)}."),
        ("synth SmolLM2-135M -o none/x.gguf", 2,
         "cannot write 'none/x.gguf': there is no folder 'none'", "Choose a writable path with -o."),
        ("bench @package --prompt 1 --tokens 1 --device hip", 9,
         "device 'hip' cannot run a package for target 'x86-64-v3' of family 'cpu'",
         "leave out --device, use --device cpu, or compile the model for another target"),
        ("golden nope", 2, "No such command 'nope'.", "'forgec golden --help' lists arguments and options"),
        ("golden types @model --type Q8_1", 2, "weight type 'Q8_1' is not known",
         f"Known: {', '.join(name.upper() for name in EXECUTABLE_TYPES)}."),
        ("golden check @package none", 2, "cannot read 'none': No such file or directory",
         "Record one with 'forgec golden record'."),
        ("golden check @package @model", 2, "'@model' is not a golden file",
         "Record one with 'forgec golden record'."),
        ("golden record @model --package @package -o none/g", 2,
         "cannot write 'none/g': there is no folder 'none'",
         "Choose a writable path with -o."),
        ("golden record none --package @package -o g", 3, "'none' does not exist",
         "Check the path of the .gguf file."),
        ("golden quality @package --against none", 8, "package 'none' does not exist",
         "Make one with 'forgec compile'."),
        ("golden quality @package --text none", 2, "cannot read 'none': No such file or directory",
         "Check --text."),
        ("golden quality @package --text @model", 2, "'@model' is not a text in UTF-8",
         "Convert it, or choose another --text."),
    ],
)  # fmt: skip
def test_wrong_arguments(
    run: Forgec, model: Path, original: Path, room: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: str, code: int, message: str, hint: str,
) -> None:  # fmt: skip
    names = {"@model": str(model), "@package": str(original)}
    monkeypatch.chdir(room)
    given = [names.get(word, word) for word in arguments.split()]
    assert run.refused(*given) == (code, message.replace("@model", str(model)), hint)


def test_a_wrong_debug_step(run: Forgec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGEC_DEBUG", "9")
    assert run.refused("targets") == (
        2, "FORGEC_DEBUG is '9', expected a whole number from 0 to 3",
        "unset it, or see forgec/config.py for what each step shows",
    )  # fmt: skip


# -- models


@pytest.mark.parametrize("kept", [0.0, 0.0001, 0.02, 0.1, 0.5, 0.99])
def test_a_truncated_model(run: Forgec, model: Path, room: Path, tmp_path: Path, kept: float) -> None:
    data = model.read_bytes()
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(data[: int(len(data) * kept)])
    code, message, hint = run.refused("compile", broken, "--arch", CPU, "-o", room / "out")
    assert code == 3 and "broken.gguf'" in message and hint
    assert run.refused("inspect", broken)[0] == 3
    assert run.refused("graph", broken, "-o", room / "graph.svg")[0] == 3


def test_no_model_at_all(run: Forgec, room: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes.gguf"
    text.write_text("import this\n")
    assert run.refused("compile", text, "--arch", CPU, "-o", room / "out") == (
        3, "'notes.gguf' is not a GGUF file: it begins with b'impo', expected b'GGUF'",
        "Convert other formats with llama.cpp's convert_hf_to_gguf.py.",
    )  # fmt: skip


def test_an_unknown_architecture(run: Forgec, room: Path, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "mamba.gguf", architecture="mamba")
    code, message, hint = run.refused("compile", model, "--arch", CPU, "-o", room / "out")
    assert (code, message) == (4, "architecture 'mamba' is not supported")
    assert "llama" in hint
    said = run("inspect", model)
    assert (said.code, said.err) == (4, "")
    assert f"  does not compile  layers: {message}\n" in said.out


def test_an_unsupported_quantisation(run: Forgec, room: Path, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "odd.gguf", quant="Q1_0", **K_SHAPE)
    code, message, hint = run.refused("compile", model, "--arch", CPU, "-o", room / "out")
    assert code == 4 and message.startswith("tensor 'token_embd.weight' has type Q1_0; expected F32, F16,")
    assert hint.startswith("Quantise the model to one of F32, F16, ")
    said = run("inspect", model)
    assert (said.code, said.err) == (4, "")
    assert f"  does not compile  layers: {message}\n{' ' * 20}{hint}\n" in said.out
    facts = json.loads(run("inspect", model, "--json").out)
    assert facts["compiles"] is False
    assert {"part": "layers", "problem": message, "hint": hint} in facts["problems"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"feed_forward_length": 172},
            "tensor 'blk.0.ffn_down.weight' has 172 columns; expected a multiple of 8",
        ),
        ({"key_length": 10}, "the attention heads have a length of 10; expected a multiple of 4"),
    ],
)
def test_shapes_that_no_kernel_takes(
    run: Forgec, room: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    model = tiny_model(tmp_path / "odd.gguf", quant="F32", **changes)
    code, found, hint = run.refused("compile", model, "--arch", CPU, "-o", room / "out")
    assert (code, found) == (4, message)
    said = run("inspect", model)
    assert said.code == 4
    assert f"  does not compile  layers: {message}\n{' ' * 20}{hint}\n" in said.out


# -- compilers


def test_no_compiler(run: Forgec, model: Path, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forgec.toolchain.select.find_hipcc", lambda: None)
    monkeypatch.setattr("forgec.toolchain.select.find_zig", lambda target, runner: None)
    pip = "pip install 'forgec[toolchain]' brings the ziglang compiler"
    assert run.refused("compile", model, "--arch", "gfx1100", "-o", room / "out") == (
        6,
        "no compiler for gfx1100: no hipcc on PATH, in ROCM_PATH or in /opt/rocm; ziglang is not installed",
        f"{pip}, or install ROCm 6 or newer",
    )  # fmt: skip
    assert run.refused("compile", model, "--arch", "sm_90", "-o", room / "out") == (
        6, "no compiler for sm_90: hipcc is for AMD GPUs; ziglang is not installed", pip,
    )  # fmt: skip
    assert run.refused("compile", model, "--arch", CPU, "-o", room / "out", "--toolchain", "zig") == (
        6, "the ziglang package is not installed", pip,
    )  # fmt: skip
    doctor = run("doctor")
    assert doctor.code == 6
    assert doctor.out.startswith("--  compiler, AMD       no compiler for gfx1100: ") and pip in doctor.out


def test_a_compile_error(
    run: Forgec, model: Path, room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import forgec.compiler

    render = forgec.compiler.render_stage
    monkeypatch.setattr("forgec.compiler.render_stage", lambda k: render(k) + "\nint broken = missing;\n")
    code, message, hint = run.refused("compile", model, "--arch", "gfx1100", "-o", room / "out")
    assert code == 6
    assert message.startswith("compiling '") and "' for gfx1100 failed at " in message
    assert message.endswith("use of undeclared identifier 'missing'")
    assert "int broken = missing;" in hint and hint.endswith("--dump-dir keeps the rendered source")
    dump = tmp_path / "dump"
    hint = run.refused("compile", model, "--arch", "gfx1100", "-o", room / "out", "--dump-dir", dump)[2]
    source = Path(hint.rpartition("the source is '")[2].removesuffix("'"))
    assert source.parent == dump / "src" and source.read_text().endswith("int broken = missing;\n")
    assert (dump / "program.txt").is_file()


def test_a_cache_that_cannot_be_written_is_one_warning(
    run: Forgec, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FORGEC_CACHE_DIR", str(tmp_path / "file"))
    # Compiling is not what is tested here, so the code comes from the session's cache all the same.
    cache = open_cache(load_config({}))[0]
    monkeypatch.setattr(
        "forgec.commands.compile.compile_model", lambda *a, **k: compile_model(*a, **k | {"cache": cache})
    )
    said = run("compile", model, "--arch", CPU, "-o", tmp_path / "out")
    assert said.code == 0
    assert said.err == (
        f"warning: compiled code is not cached: '{tmp_path}/file/objects' cannot be written "
        "(Not a directory); set FORGEC_CACHE_DIR\n"
    )


# -- outputs


def compile_to(run: Forgec, model: Path, output: Path, *more: str) -> tuple[int, str, str]:
    return run.refused("compile", model, "--arch", CPU, "-o", output, *more)


def test_an_existing_package_needs_force(run: Forgec, model: Path, package: Path) -> None:
    (package / "mine.txt").write_text("old")
    assert compile_to(run, model, package) == (
        8, f"output '{package}' already exists", "Add --force to replace it, or choose another path with -o.",
    )  # fmt: skip
    assert (package / "mine.txt").read_text() == "old"
    assert run("compile", model, "--arch", CPU, "-o", package, "--force").code == 0
    assert not (package / "mine.txt").exists()
    assert [p.name for p in package.parent.iterdir()] == [package.name]


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_what_is_no_package_is_never_replaced(
    run: Forgec, model: Path, tmp_path: Path, force: tuple[str, ...]
) -> None:
    folder, file, dangling = tmp_path / "folder", tmp_path / "file", tmp_path / "link"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    file.write_text("one file")
    dangling.symlink_to(tmp_path / "nowhere")
    for output in (folder, file, dangling, folder / ".." / "folder", Path("/")):
        assert compile_to(run, model, output, *force) == (
            8, f"output '{output}' exists and is not a package made by forgec", CHOOSE,
        )  # fmt: skip
    assert compile_to(run, model, file / "below", *force) == (
        8,
        f"'{file}' is a file, not a folder to write to",
        CHOOSE,
    )
    assert (folder / "thesis.tex").read_text() == "years of work"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder", "link"]


def test_force_through_a_symlink_replaces_the_link_only(run: Forgec, model: Path, package: Path) -> None:
    link = package.with_name("link")
    link.symlink_to(package)
    (package / "mine.txt").write_text("old")
    assert run("compile", model, "--arch", CPU, "-o", link, "--force").code == 0
    assert not link.is_symlink() and (link / "manifest.json").is_file()
    assert (package / "mine.txt").is_file()
    assert sorted(p.name for p in package.parent.iterdir()) == ["link", "tiny"]


def test_a_read_only_folder(run: Forgec, model: Path, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # For root every folder is writable, so the system's answer is supplied.
    monkeypatch.setattr("forgec.package.output.os.access", lambda path, mode: not mode & os.W_OK)
    assert compile_to(run, model, room / "out") == (
        8, f"output folder '{room}' is not writable", "Choose a writable path with -o.",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk is full: 'OUT' was not written"),
        (errno.EROFS, "cannot write 'OUT': Read-only file system"),
    ],
)
def test_a_disk_that_refuses_in_the_middle(
    run: Forgec, model: Path, room: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("forgec.package.weights._DigestingWriter.write", fail)
    output = room / "new" / "folder" / "out"
    assert compile_to(run, model, output)[:2] == (8, message.replace("OUT", str(output)))


def test_too_little_space_is_said_before_writing(
    run: Forgec, model: Path, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def usage(path: Path) -> Any:
        return shutil._ntuple_diskusage(10, 10, 5 << 20)  # type: ignore[attr-defined]

    monkeypatch.setattr("forgec.package.output.shutil.disk_usage", usage)
    assert compile_to(run, model, room / "out") == (
        8, f"the package needs 32 MiB, '{room}' has 5 MiB free",
        "Free some space or choose another path with -o.",
    )  # fmt: skip


def test_a_file_size_limit(model: Path, original: Path, room: Path) -> None:
    """A real refusal of the system in the middle of weights.bin."""
    limit = (original / "weights.bin").stat().st_size - 4096
    process = start(
        ["-m", "forgec", "compile", model, "--arch", CPU, "-o", room / "out"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    said = finish(process)
    assert (said.code, said.out) == (8, "")
    assert one_error(said.err) == (
        f"cannot write '{room / 'out'}': File too large",
        "Choose a writable path with -o.",
    )


def test_a_dump_dir_that_cannot_be_written(run: Forgec, model: Path, room: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert compile_to(run, model, room / "out", "--dump-dir", str(tmp_path / "file")) == (
        2, f"cannot write '{tmp_path / 'file' / '00-import.txt'}': File exists",
        "Choose a writable --dump-dir.",
    )  # fmt: skip


# -- interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_leaves_nothing(model: Path, room: Path, tmp_path: Path, number: signal.Signals) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = start(
        ["-m", "forgec", "compile", model, "--arch", "gfx1100", "-o", room / "new" / "out"],
        env={"TMPDIR": str(scratch), "FORGEC_CACHE_DIR": str(tmp_path / "cache")},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while not list(scratch.glob("*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(scratch.glob("*"))  # compilers are at work
    process.send_signal(number)
    said = finish(process)
    # A second signal number comes from Python itself, which passes an interrupt on after a clean-up.
    assert said.code in (128 + number, -number) and said.out == ""
    if number == signal.SIGINT:
        assert one_error(said.err) == ("interrupted", "")
    else:
        assert said.err == ""
    assert list(scratch.iterdir()) == []
    assert {p.suffix for p in (tmp_path / "cache").rglob("*") if p.is_file()} <= {".entry"}


def test_nohup_is_respected(model: Path, tmp_path: Path) -> None:
    process = start(
        ["-m", "forgec", "compile", model, "--arch", CPU, "-o", tmp_path / "out"],
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    while process.poll() is None:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
    assert finish(process).code == 0
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_a_model_that_does_not_fit(run: Forgec, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = dataclasses.replace(get_target("gfx1100"), memory_bytes=205 << 20)
    monkeypatch.setattr("forgec.compiler.get_target", lambda name: small)
    arguments = ("compile", require_smollm2(), "--arch", "gfx1100", "-o", room / "out")
    code, message, hint = run.refused(*arguments)
    assert code == 5
    assert re.fullmatch(
        r"'Smollm2 135M 8k Lc100K Mix1 Ep2' needs 0\.3 GiB at a context of 8192 tokens, "
        r"'gfx1100' has 0\.2 GiB \(weights 9\d MiB, kv 180 MiB, arena \d MiB\)",
        message,
    )
    assert (
        hint == "Choose a shorter context with --ctx, a smaller quantisation, or a target with more memory."
    )
