"""The toolchain with nothing but pip's ziglang: all targets, inspection, errors, reproducibility."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from forgec.errors import ToolchainError
from forgec.targets import Target, all_targets, get_target
from forgec.toolchain import (
    ArgInfo,
    Runner,
    Unit,
    compile_units,
    select_toolchain,
)
from forgec.toolchain.zig import ZigToolchain

GFX1100 = get_target("gfx1100")

# One text for every target: a block sum through on-chip memory, with a struct passed by value.
SOURCE = """\
#if defined(__HIP__) || defined(__CUDA__)
#define KERNEL extern "C" __attribute__((global))
#define LDS __attribute__((shared)) static
#else
#define KERNEL extern "C"
#define LDS static
#endif
#if defined(__HIP__)
#define THREAD __builtin_amdgcn_workitem_id_x()
#define SYNC __builtin_amdgcn_s_barrier()
#define BOUNDS __attribute__((amdgpu_flat_work_group_size(THREADS, THREADS)))
#elif defined(__CUDA__)
#define THREAD __nvvm_read_ptx_sreg_tid_x()
#define SYNC __syncthreads()
#define BOUNDS __attribute__((launch_bounds(THREADS)))
#else
#define THREAD 0
#define SYNC
#define BOUNDS
#endif
struct Pair { int first; short second; };
KERNEL BOUNDS void scale(const float* x, char tag, double factor, Pair pair, float* y) {
  LDS float tile[THREADS];
  tile[THREAD] = x[THREAD];
  SYNC;
  y[THREAD] = tile[THREADS - 1 - THREAD] * (float)factor + pair.first + pair.second + tag;
}
KERNEL BOUNDS void fill(float* y, int n) {
  for (int i = THREAD; i < n; i += THREADS) y[i] = 0.5f;
}
"""
ARGS = (
    ArgInfo("x", 0, 8, "pointer"),
    ArgInfo("tag", 8, 1, "value"),
    ArgInfo("factor", 16, 8, "value"),
    ArgInfo("pair", 24, 8, "value"),
    ArgInfo("y", 32, 8, "pointer"),
)
BAD = 'extern "C" __attribute__((global)) void k(float* x) {\n  x[0] = nowhere;\n  x[1] = 1.0f + y;\n}\n'


def kernel(body: str, name: str = "k", **options: object) -> Unit:
    source = f'extern "C" __attribute__((global)) void {name}(float* x) {{ {body} }}\n'
    return dataclasses.replace(Unit(name, source, (name,)), **options)  # type: ignore[arg-type]


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary directory of this test alone, in which nothing may be left."""
    directory = tmp_path / "scratch"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    yield directory
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("target", all_targets(), ids=lambda target: target.name)
def test_one_source_compiles_for_every_target(target: Target) -> None:
    source = SOURCE.replace("THREADS", str(target.block_size))
    (code,) = compile_units([Unit("sum", source, ("scale", "fill"))], target, toolchain="zig")
    scale, fill = code.inspection
    assert (code.name, code.target, code.cached, code.log) == ("sum", target.name, False, "")
    assert (scale.symbol, fill.symbol) == ("scale", "fill")
    assert scale.wave == target.wave
    assert "clang version" in code.compiler
    if target.driver == "cpu":
        return
    assert [dataclasses.replace(arg, name="") for arg in scale.args if arg.kind != "hidden"] == [
        dataclasses.replace(arg, name="") for arg in ARGS
    ]
    assert (scale.lds_bytes, scale.max_threads, scale.kernarg_bytes) == (
        4 * target.block_size,
        target.block_size,
        40,
    )
    assert (fill.lds_bytes, fill.scratch_bytes, len(fill.args)) == (0, 0, 2)
    if target.driver == "hip":
        assert [arg.name for arg in scale.args] == ["x", "tag", "factor", "pair", "y"]
        assert 0 < scale.vgprs < 64
        assert 0 < scale.sgprs <= 108
        # ABI version 3 is code object 5, the newest that ROCm 6 loads.
        assert code.data[8] == 3
    else:
        assert "\n.version 8.0\n" in code.assembly
        assert code.data == code.assembly.encode()


def test_the_cpu_object_runs(tmp_path: Path) -> None:
    target = get_target("native")
    (code,) = compile_units([Unit("sum", SOURCE.replace("THREADS", "1"), ("fill",))], target, toolchain="zig")
    (tmp_path / "sum.so").write_bytes(code.data)
    library = ctypes.CDLL(str(tmp_path / "sum.so"))
    values = (ctypes.c_float * 5)(*range(5))
    library.fill(values, 3)
    assert list(values) == [0.5, 0.5, 0.5, 3.0, 4.0]
    # Only what was asked for is visible.
    with pytest.raises(AttributeError):
        _ = library.scale


def test_clang_headers_but_no_others() -> None:
    target = get_target("x86-64-v3")
    simd = Unit(
        "simd",
        "#include <immintrin.h>\n#include <stdint.h>\n"
        'extern "C" void add(float* x) { '
        "_mm256_storeu_ps(x, _mm256_add_ps(_mm256_loadu_ps(x), _mm256_set1_ps(1))); }\n",
        ("add",),
    )
    (code,) = compile_units([simd], target, toolchain="zig")
    assert "vaddps" in code.assembly
    hosted = Unit("hosted", '#include <math.h>\nextern "C" void f() {}\n', ("f",))
    with pytest.raises(ToolchainError, match=r"failed at hosted.cpp:1:10: 'math.h' file not found"):
        compile_units([hosted], target, toolchain="zig")


def test_a_unit_in_c_with_the_c_library(tmp_path: Path) -> None:
    source = (
        "extern int pthread_create(void*, const void*, void* (*)(void*), void*);\n"
        "extern int pthread_join(unsigned long, void**);\n"
        "static void* work(void* restrict value) { *(int*)value += 1; return (void*)0; }\n"
        "int run(int* value) {\n  unsigned long thread;\n"
        "  return pthread_create(&thread, (void*)0, work, value) || pthread_join(thread, (void**)0);\n}\n"
    )
    unit = Unit("pool", source, ("run",), libc=True, language="c")
    target = get_target("x86-64-v3")
    (code,) = compile_units([unit], target, toolchain="zig")
    (tmp_path / "pool.so").write_bytes(code.data)
    value = ctypes.c_int(41)
    assert ctypes.CDLL(str(tmp_path / "pool.so")).run(ctypes.byref(value)) == 0
    assert value.value == 42
    with pytest.raises(
        ToolchainError, match="'pool' uses 'pthread_create', which no package provides"
    ) as caught:
        compile_units([dataclasses.replace(unit, libc=False)], target, toolchain="zig")
    assert "libc=True" in caught.value.hint
    with pytest.raises(ToolchainError, match="unit 'pool' is C, which does not compile for gfx1100"):
        compile_units([unit], GFX1100, toolchain="zig")


def test_even_the_c_library_has_bounds() -> None:
    source = 'extern "C" int system(const char*);\nextern "C" void f() { system("x"); }\n'
    with pytest.raises(ToolchainError, match="'f' uses 'system', which no package provides"):
        compile_units([Unit("f", source, ("f",), libc=True)], get_target("x86-64-v3"), toolchain="zig")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "a/b"}, "unit name 'a/b' is not a plain file name"),
        ({"name": ".."}, "unit name '..' is not a plain file name"),
        ({"name": ""}, "unit name '' is not a plain file name"),
        ({"entries": ()}, "unit 'k' must name its kernels once each, found ()"),
        ({"entries": ("k", "k")}, "unit 'k' must name its kernels once each, found ('k', 'k')"),
        ({"language": "c++"}, "unit 'k' has the unknown language 'c++'"),
    ],
)
def test_a_wrong_unit_cannot_exist(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ToolchainError) as caught:
        kernel("x[0] = 1;", **fields)
    assert caught.value.message == message


def test_a_compile_error_names_the_place(tmp_path: Path, scratch: Path) -> None:
    dump = tmp_path / "dump"
    with pytest.raises(ToolchainError) as caught:
        compile_units([Unit("bad", BAD, ("k",))], GFX1100, toolchain="zig", dump_dir=dump)
    assert caught.value.message == (
        "compiling 'bad' for gfx1100 failed at bad.hip:2:10: use of undeclared identifier 'nowhere'"
    )
    lines = caught.value.hint.splitlines()
    assert lines[0] == "bad.hip:2:10: error: use of undeclared identifier 'nowhere'"
    assert any("x[1] = 1.0f + y;" in line for line in lines)
    assert lines[-1] == f"the source is '{dump / 'bad.hip'}'"
    assert (dump / "bad.hip").read_text() == BAD
    assert [path.name for path in dump.iterdir()] == ["bad.hip"]


def test_the_dump_holds_source_and_listing(tmp_path: Path) -> None:
    compile_units([kernel("x[0] = 1;")], GFX1100, toolchain="zig", dump_dir=tmp_path / "a")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["k.hip", "k.s"]
    compile_units([kernel("x[0] = 1;")], get_target("sm_80"), toolchain="zig", dump_dir=tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["k.cu", "k.ptx"]
    assert ".entry k(" in (tmp_path / "b" / "k.ptx").read_text()


def test_an_undefined_function_is_named() -> None:
    unit = dataclasses.replace(
        kernel("x[0] = cosine(x[1]);"),
        source="__attribute__((device)) float cosine(float);\n" + kernel("x[0] = cosine(x[1]);").source,
    )
    with pytest.raises(ToolchainError) as caught:
        compile_units([unit], GFX1100, toolchain="zig")
    assert (
        caught.value.message == "linking 'k' for gfx1100 failed: 'cosine(float)' is used but nowhere defined"
    )
    assert "freestanding" in caught.value.hint


@pytest.mark.parametrize("name", ["gfx1100", "sm_90", "x86-64-v3"])
def test_a_missing_entry_is_an_error(name: str) -> None:
    unit = Unit("k", SOURCE.replace("THREADS", str(get_target(name).block_size)), ("fill", "missing"))
    with pytest.raises(ToolchainError) as caught:
        compile_units([unit], get_target(name), toolchain="zig")
    assert caught.value.message == f"'k' for {name} has no kernel 'missing'"
    assert "fill" in caught.value.hint


def test_the_error_is_that_of_the_first_failing_unit() -> None:
    # The first failure takes longest to find: it must still be the one that is reported.
    slow = "typedef int a;\n" * 20000
    units = [
        kernel("x[0] = 1;", "fine"),
        Unit("slow", slow + BAD, ("k",)),
        *(Unit(f"quick{index}", BAD, ("k",)) for index in range(4)),
    ]
    for jobs in (1, 4):
        with pytest.raises(ToolchainError, match=r"compiling 'slow' for gfx1100 failed at slow.hip:20002:10"):
            compile_units(units, GFX1100, toolchain="zig", jobs=jobs)


def test_after_a_failure_nothing_later_is_waited_for(tmp_path: Path, scratch: Path) -> None:
    hangs = fake_zig(tmp_path, 'case "$*" in *hangs.hip*) sleep 60;; *) sleep 0.3; exit 3;; esac\n')
    units = [kernel("x[0] = 1;", "fails"), kernel("x[0] = 1;", "hangs")]
    start = time.monotonic()
    with pytest.raises(ToolchainError, match="compiling 'fails' for gfx1100 failed with exit code 3"):
        compile_units(units, GFX1100, toolchain=hangs, jobs=2)
    assert time.monotonic() - start < 20


def test_two_units_of_one_name_are_refused() -> None:
    with pytest.raises(ToolchainError, match="two units are called 'k'"):
        compile_units([kernel("x[0] = 1;"), kernel("x[0] = 2;")], GFX1100, toolchain="zig")


def test_no_units_and_no_jobs() -> None:
    assert compile_units([], GFX1100) == ()
    with pytest.raises(ToolchainError, match="0 jobs cannot compile anything"):
        compile_units([kernel("x[0] = 1;")], GFX1100, jobs=0)


def test_progress_counts_to_the_end_in_this_thread() -> None:
    calls: list[tuple[int, int]] = []
    threads: set[int] = set()

    def progress(done: int, total: int) -> None:
        calls.append((done, total))
        threads.add(threading.get_ident())

    units = [kernel(f"x[{index}] = 1;", f"k{index}") for index in range(5)]
    codes = compile_units(units, GFX1100, toolchain="zig", progress=progress, jobs=2)
    assert [code.name for code in codes] == [unit.name for unit in units]
    assert calls[0] == (0, 5)
    assert calls[-1] == (5, 5)
    assert calls == sorted(calls)
    assert threads == {threading.get_ident()}


def test_a_failing_callback_ends_the_compilation(scratch: Path) -> None:
    def progress(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_units([kernel("x[0] = 1;")], GFX1100, toolchain="zig", progress=progress)


@pytest.mark.parametrize("name", ["gfx1100", "gfx942", "sm_90", "x86-64-v3"])
def test_bytes_do_not_depend_on_directory_environment_or_jobs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = get_target(name)
    source = SOURCE.replace("THREADS", str(target.block_size))
    units = [Unit(f"u{index}", source, ("scale", "fill")) for index in range(3)]
    results = []
    for jobs, place in ((1, "one"), (4, "another one")):
        (tmp_path / place / "home").mkdir(parents=True)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / place))
        monkeypatch.setenv("HOME", str(tmp_path / place / "home"))
        monkeypatch.setenv("CPATH", str(tmp_path / place))
        monkeypatch.chdir(tmp_path / place)
        results.append(compile_units(units, target, toolchain="zig", jobs=jobs))
        assert sorted(path.name for path in (tmp_path / place).rglob("*")) == ["home"]
    assert [code.data for code in results[0]] == [code.data for code in results[1]]
    assert [code.assembly for code in results[0]] == [code.assembly for code in results[1]]
    for code in results[0]:
        for trace in (b"clang version", str(tmp_path).encode()):
            assert trace not in code.data
        # clang keeps the symbol, but without the hash of path and command line that makes it differ.
        assert re.search(rb"__hip_cuid_[0-9a-f]", code.data) is None


@pytest.mark.parametrize("name", ["gfx1100", "sm_90", "x86-64-v3"])
def test_no_header_comes_from_the_environment(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "found.h").write_text("#define FOUND\n")
    for variable in ("CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH"):
        monkeypatch.setenv(variable, str(tmp_path))
    unit = Unit("k", '#include "found.h"\n', ("k",))
    with pytest.raises(ToolchainError, match=r"'found.h' file not found"):
        compile_units([unit], get_target(name), toolchain="zig")


def test_no_home_and_no_cache_directory_are_needed(tmp_path: Path) -> None:
    script = (
        "from forgec.targets import get_target\nfrom forgec.toolchain import Unit, compile_units\n"
        "unit = Unit('k', 'extern \"C\" __attribute__((global)) void k(float* x) { x[0] = 1; }', ('k',))\n"
        "print(len(compile_units([unit], get_target('gfx1100'), toolchain='zig')[0].data))\n"
    )
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "HOME": str(tmp_path / "missing"),
        "TMPDIR": str(tmp_path),
    }
    answer = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(answer.stdout) > 1000
    assert list(tmp_path.iterdir()) == []


def fake_zig(directory: Path, script: str) -> ZigToolchain:
    """A compiler that is a shell script: for what a sound one never does."""
    path = directory / "compiler"
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)
    return ZigToolchain(path, "fake 1.0")


@pytest.mark.parametrize(
    ("script", "message", "hint"),
    [
        ("kill -9 $$", "the compiler was killed (SIGKILL), most often because memory ran out", ""),
        (
            "echo '0.\tProgram arguments: x' >&2; echo '1.\t<eof> parser' >&2; exit 139",
            "the compiler crashed (SIGSEGV)",
            "1.\t<eof> parser",
        ),
        (
            "echo 'LLVM ERROR: Cannot select' >&2; exit 70",
            "the compiler crashed (exit code 70)",
            "LLVM ERROR: Cannot select",
        ),
    ],
)
def test_a_dying_compiler_is_reported(
    tmp_path: Path, scratch: Path, script: str, message: str, hint: str
) -> None:
    with pytest.raises(ToolchainError) as caught:
        compile_units([kernel("x[0] = 1;")], GFX1100, toolchain=fake_zig(tmp_path, script))
    assert caught.value.message == f"compiling 'k' for gfx1100 failed: {message}"
    assert caught.value.hint.startswith(hint)


def test_a_compiler_that_says_nothing_and_one_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="compiling 'k' for gfx1100 failed with exit code 3") as caught:
        compile_units([kernel("x[0] = 1;")], GFX1100, toolchain=fake_zig(tmp_path, "exit 3"))
    assert caught.value.hint.startswith("the compiler printed nothing")
    gone = ZigToolchain(tmp_path / "gone", "fake 1.0")
    with pytest.raises(ToolchainError, match=r"gone' cannot be started: No such file or directory"):
        compile_units([kernel("x[0] = 1;")], GFX1100, toolchain=gone)


def test_a_hanging_compiler_is_stopped(tmp_path: Path, scratch: Path) -> None:
    start = time.monotonic()
    with pytest.raises(ToolchainError, match=r"compiling 'k' for gfx1100 did not finish within \d+ s"):
        # The child must go too, or it would hold the pipe for a minute.
        compile_units(
            [kernel("x[0] = 1;")],
            GFX1100,
            toolchain=fake_zig(tmp_path, "sleep 60 & wait"),
            timeout_seconds=0.3,
        )
    assert time.monotonic() - start < 20


def test_a_cancelled_runner_stops_what_runs_and_starts_no_more(tmp_path: Path) -> None:
    runner = Runner()
    timer = threading.Timer(0.2, runner.cancel)
    timer.start()
    start = time.monotonic()
    finished = runner.run(("sleep", "60"), tmp_path)
    timer.join()
    assert time.monotonic() - start < 20
    assert (finished.returncode, finished.timed_out) == (-9, False)
    with pytest.raises(ToolchainError, match="the compilation was cancelled"):
        runner.run(("true",), tmp_path)


def test_native_features_are_part_of_the_recipe() -> None:
    native, portable = get_target("native"), get_target("x86-64-v3")
    unit = Unit("k", 'extern "C" void k() {}', ("k",))
    chosen = select_toolchain("zig", native)
    assert isinstance(chosen, ZigToolchain)
    assert chosen.native
    other = dataclasses.replace(chosen, native=(*chosen.native, "+amx-int8"))
    assert chosen.recipe(unit, native) != other.recipe(unit, native)
    assert chosen.recipe(unit, portable) == other.recipe(unit, portable)


def test_without_ziglang_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("forgec.toolchain.select.find_zig", lambda target, runner: None)
    monkeypatch.setattr("forgec.toolchain.select.find_hipcc", lambda: None)
    with pytest.raises(ToolchainError) as caught:
        select_toolchain("zig", GFX1100)
    assert caught.value.message == "the ziglang package is not installed"
    assert "pip install 'forgec[toolchain]'" in caught.value.hint
    with pytest.raises(ToolchainError) as caught:
        select_toolchain("auto", GFX1100)
    assert caught.value.message == (
        "no compiler for gfx1100: no hipcc on PATH, in ROCM_PATH or in /opt/rocm; ziglang is not installed"
    )
    assert "ROCm 6" in caught.value.hint
    with pytest.raises(ToolchainError) as caught:
        select_toolchain("auto", get_target("sm_90"))
    assert caught.value.message == "no compiler for sm_90: hipcc is for AMD GPUs; ziglang is not installed"
    with pytest.raises(ToolchainError, match="unknown toolchain 'nvcc'"):
        select_toolchain("nvcc", GFX1100)
