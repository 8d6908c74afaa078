"""hipcc: how it is found, judged and described; a real one where there is one, stand-ins everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from forgec.errors import ToolchainError
from forgec.targets import get_target
from forgec.toolchain import Runner, Unit, compile_units, select_toolchain
from forgec.toolchain.hipcc import HipccToolchain, describe_hipcc, find_hipcc, probe

GFX1100 = get_target("gfx1100")
HIPCC = find_hipcc()
needs_hipcc = pytest.mark.skipif(HIPCC is None, reason="no hipcc on this machine")

KERNEL = Unit(
    "half",
    'extern "C" __attribute__((global, amdgpu_flat_work_group_size(64, 64))) void half(float* x, int n) {\n'
    "  int i = __builtin_amdgcn_workitem_id_x();\n  if (i < n) x[i] *= 0.5f;\n}\n",
    ("half",),
)


def stand_in(directory: Path, version: str = "6.2.41133-dd7f95766", *, compiles: bool = True) -> Path:
    """A script that answers like hipcc; it compiles by handing its arguments to ziglang's clang."""
    zig = select_toolchain("zig", GFX1100).executable  # type: ignore[attr-defined]
    (directory / "bin").mkdir(parents=True)
    (directory / "llvm").mkdir()
    scripts = {
        "llvm/clang": f'exec "{zig}" clang "$@"\n',
        "llvm/ld.lld": f'exec "{zig}" ld.lld "$@"\n',
        "bin/hipcc": (
            'case " $* " in\n'
            f'*" --version "*) echo "HIP version: {version}"; echo "AMD clang version 18.0.0git"; exit 0;;\n'
            f'*" -### "*) echo " \\"{directory}/llvm/clang\\" \\"-cc1\\"" >&2; exit 0;;\n'
            "esac\n"
            '[ "$HIP_PLATFORM" = amd ] || { echo "not for AMD" >&2; exit 1; }\n'
            + (f'exec "{zig}" clang "$@"\n' if compiles else 'echo "invalid target ID" >&2; exit 1\n')
        ),
    }
    for name, text in scripts.items():
        (directory / name).write_text("#!/bin/sh\n" + text)
        (directory / name).chmod(0o755)
    return directory / "bin" / "hipcc"


def test_hipcc_is_looked_for_in_three_places(tmp_path: Path) -> None:
    first, second, third = (stand_in(tmp_path / name) for name in ("path", "rocm", "opt"))
    nowhere = tmp_path / "nowhere"
    everything = {"PATH": str(first.parent), "ROCM_PATH": str(tmp_path / "rocm")}
    assert find_hipcc(everything, tmp_path / "opt") == first
    assert find_hipcc({"PATH": "", "ROCM_PATH": str(tmp_path / "rocm")}, tmp_path / "opt") == second
    assert find_hipcc({"PATH": "", "ROCM_PATH": str(nowhere)}, tmp_path / "opt") == third
    assert find_hipcc({"PATH": str(nowhere)}, nowhere) is None
    third.chmod(0o644)
    assert find_hipcc({}, tmp_path / "opt") is None


def test_a_hipcc_is_described(tmp_path: Path) -> None:
    toolchain = describe_hipcc(stand_in(tmp_path), Runner())
    assert toolchain.version == "HIP 6.2.41133-dd7f95766, AMD clang version 18.0.0git"
    assert (toolchain.name, toolchain.major) == ("hipcc", 6)
    assert (toolchain.clang, toolchain.linker) == (tmp_path / "llvm/clang", tmp_path / "llvm/ld.lld")


def test_what_does_not_answer_like_hipcc_is_refused(tmp_path: Path) -> None:
    impostor = tmp_path / "hipcc"
    impostor.write_text("#!/bin/sh\necho hello\n")
    impostor.chmod(0o755)
    with pytest.raises(ToolchainError, match="does not answer like a hipcc"):
        describe_hipcc(impostor, Runner())
    (without_lld := stand_in(tmp_path / "rocm")).parent.parent.joinpath("llvm/ld.lld").unlink()
    with pytest.raises(ToolchainError, match=r"there is no ld.lld beside it"):
        describe_hipcc(without_lld, Runner())


def test_auto_prefers_the_hipcc_of_rocm_6(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hipcc = stand_in(tmp_path / "rocm")
    monkeypatch.setattr("forgec.toolchain.select.find_hipcc", lambda: hipcc)
    chosen = select_toolchain("auto", GFX1100)
    assert (chosen.name, chosen.version) == ("hipcc", "HIP 6.2.41133-dd7f95766, AMD clang version 18.0.0git")
    assert select_toolchain("zig", GFX1100).name == "zig"
    assert select_toolchain("auto", get_target("sm_90")).name == "zig"
    (code,) = compile_units([KERNEL], GFX1100)
    assert code.compiler == chosen.version
    assert [arg.offset for arg in code.kernel("half").args if arg.kind != "hidden"] == [0, 8]
    # The same clang behind both: the two paths must give the same code.
    (other,) = compile_units([KERNEL], GFX1100, toolchain="zig")
    assert code.data == other.data


@pytest.mark.parametrize(("version", "compiles"), [("5.2.21153-0", True), ("6.0.0", False)])
def test_auto_passes_over_an_old_or_broken_hipcc(
    version: str, compiles: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hipcc = stand_in(tmp_path / "rocm", version, compiles=compiles)
    monkeypatch.setattr("forgec.toolchain.select.find_hipcc", lambda: hipcc)
    assert select_toolchain("auto", GFX1100).name == "zig"
    if compiles:
        assert select_toolchain("hipcc", GFX1100).name == "hipcc"
        return
    with pytest.raises(ToolchainError) as caught:
        select_toolchain("hipcc", GFX1100)
    assert caught.value.message == (
        f"'{hipcc}' (HIP 6.0.0, AMD clang version 18.0.0git) does not compile for gfx1100: "
        "compiling 'probe' for gfx1100 with hipcc failed with exit code 1"
    )
    assert "--toolchain zig" in caught.value.hint
    assert "invalid target ID" in caught.value.hint
    monkeypatch.setattr("forgec.toolchain.select.find_zig", lambda target, runner: None)
    with pytest.raises(ToolchainError, match=r"no compiler for gfx1100: '.*hipcc' is not usable"):
        select_toolchain("auto", GFX1100)


def test_hipcc_is_for_amd_only() -> None:
    with pytest.raises(ToolchainError) as caught:
        select_toolchain("hipcc", get_target("x86-64-v3"))
    assert caught.value.message == "hipcc compiles for AMD GPUs and not for x86-64-v3"


def test_without_hipcc_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forgec.toolchain.select.find_hipcc", lambda: None)
    with pytest.raises(ToolchainError) as caught:
        select_toolchain("hipcc", GFX1100)
    assert caught.value.message == "no hipcc on PATH, in ROCM_PATH or in /opt/rocm"
    assert "install ROCm 6 or newer, or use '--toolchain zig'" in caught.value.hint


@needs_hipcc
@pytest.mark.parametrize("name", ["gfx1100", "gfx1030", "gfx90a"])
def test_the_real_hipcc_compiles(name: str) -> None:
    assert HIPCC is not None
    target = get_target(name)
    (code,) = compile_units([KERNEL], target, toolchain="hipcc")
    (again,) = compile_units([KERNEL], target, toolchain="hipcc")
    info = code.kernel("half")
    assert code.data == again.data
    assert code.data[8] == 3, "not a code object of version 5"
    assert (info.wave, info.max_threads, info.scratch_bytes) == (target.wave, 64, 0)
    assert [(a.name, a.offset, a.kind) for a in info.args if a.kind != "hidden"] == [
        ("x", 0, "pointer"),
        ("n", 8, "value"),
    ]
    assert b"clang version" not in code.data


@needs_hipcc
def test_the_real_hipcc_is_asked_before_it_is_used() -> None:
    assert HIPCC is not None
    toolchain = describe_hipcc(HIPCC, Runner())
    assert isinstance(toolchain, HipccToolchain)
    assert toolchain.linker.is_file()
    probe(toolchain, GFX1100, Runner())
    with pytest.raises(ToolchainError, match=r"failed at half.hip:5:"):
        compile_units([Unit("half", KERNEL.source + "nonsense\n", ("half",))], GFX1100, toolchain=toolchain)
