"""The compile cache and its settings: hits, damage, other machines, unwritable places, pruning."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from forgec.config import Config, configure_logging, load_config
from forgec.errors import ToolchainError, UsageError
from forgec.targets import Target, get_target
from forgec.toolchain import Cache, Compiled, Runner, Unit, cache_key, compile_units, open_cache

TARGET = get_target("gfx1100")
SOURCE = 'extern "C" __attribute__((global)) void k(float* x) { x[0] = 2.0f; }\n'
UNIT = Unit("unit", SOURCE, ("k",))


@dataclasses.dataclass(frozen=True)
class FakeToolchain:
    """A compiler that only has a key, and refuses to compile."""

    name: str = "zig"
    version: str = "1.0"
    extra: tuple[str, ...] = ()

    def recipe(self, unit: Unit, target: Target) -> tuple[str, ...]:
        return ("-O3", *self.extra, *target.cpu_flags, *unit.flags)

    def compile(self, unit: Unit, target: Target, runner: Runner) -> Compiled:
        raise ToolchainError("this compiler was not to be called")


def cache_at(directory: Path) -> Cache:
    cache, warning = open_cache(Config(directory))
    assert cache is not None and warning is None
    return cache


def test_the_second_compilation_is_the_first_again(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    (first,) = compile_units([UNIT], TARGET, toolchain="zig", cache=cache)
    (second,) = compile_units([UNIT], TARGET, toolchain="zig", cache=cache)
    assert (first.cached, second.cached) == (False, True)
    assert dataclasses.replace(second, cached=False) == first
    assert first.data and first.assembly


def test_what_the_key_depends_on() -> None:
    keys = {
        "as it is": cache_key(UNIT, TARGET, FakeToolchain()),
        "source": cache_key(dataclasses.replace(UNIT, source=SOURCE + " "), TARGET, FakeToolchain()),
        "name": cache_key(dataclasses.replace(UNIT, name="other"), TARGET, FakeToolchain()),
        "entries": cache_key(dataclasses.replace(UNIT, entries=("k", "l")), TARGET, FakeToolchain()),
        "libc": cache_key(dataclasses.replace(UNIT, libc=True), TARGET, FakeToolchain()),
        "language": cache_key(dataclasses.replace(UNIT, language="c"), TARGET, FakeToolchain()),
        "unit flags": cache_key(dataclasses.replace(UNIT, flags=("-O1",)), TARGET, FakeToolchain()),
        "target": cache_key(UNIT, get_target("gfx1101"), FakeToolchain()),
        "version": cache_key(UNIT, TARGET, FakeToolchain(version="1.1")),
        "toolchain": cache_key(UNIT, TARGET, FakeToolchain(name="hipcc")),
        "compiler flags": cache_key(UNIT, TARGET, FakeToolchain(extra=("-g",))),
    }
    assert len(set(keys.values())) == len(keys), keys
    assert keys["as it is"] == cache_key(UNIT, TARGET, FakeToolchain())


@pytest.mark.parametrize("damage", ["truncated", "flipped bit", "empty", "other entry"])
def test_a_damaged_entry_is_compiled_again(tmp_path: Path, damage: str) -> None:
    cache = cache_at(tmp_path)
    (first,) = compile_units([UNIT], TARGET, toolchain="zig", cache=cache)
    (path,) = cache.directory.glob("*/*.entry")
    raw = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(raw[: len(raw) // 2])
    elif damage == "flipped bit":
        middle = len(raw) // 2
        path.write_bytes(raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        other = dataclasses.replace(UNIT, source=SOURCE.replace("2.0f", "3.0f"))
        compile_units([other], TARGET, toolchain="zig", cache=cache)
        (strange,) = set(cache.directory.glob("*/*.entry")) - {path}
        path.write_bytes(strange.read_bytes())
    (second,) = compile_units([UNIT], TARGET, toolchain="zig", cache=cache)
    assert not second.cached
    assert second.data == first.data
    assert path.read_bytes() == raw


def test_the_directory_can_be_carried_elsewhere(tmp_path: Path) -> None:
    (first,) = compile_units([UNIT], TARGET, toolchain="zig", cache=cache_at(tmp_path / "here"))
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    (second,) = compile_units([UNIT], TARGET, toolchain="zig", cache=cache_at(tmp_path / "there"))
    assert second.cached
    assert second.data == first.data
    for path in (tmp_path / "there").rglob("*.entry"):
        assert str(tmp_path).encode() not in path.read_bytes()


def test_a_directory_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache, warning = open_cache(Config(tmp_path / "file" / "cache"))
    assert cache is None
    assert warning is not None
    assert "compiled code is not cached" in warning.message
    assert "set FORGEC_CACHE_DIR" in warning.message


def test_a_directory_that_vanishes_is_a_warning(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    shutil.rmtree(cache.directory)
    cache.directory.write_text("in the way")
    warning = cache.store("ab" * 32, Compiled(b"data", "text", ""))
    assert warning is not None
    assert cache.load("ab" * 32) is None
    (code,) = compile_units([UNIT], TARGET, toolchain="zig", cache=cache)
    assert not code.cached


def test_storing_leaves_only_the_entry(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    assert cache.store("ab" * 32, Compiled(b"data", "text", "log")) is None
    files = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert files == ["ab" * 32 + ".entry"]
    assert cache.load("ab" * 32) == Compiled(b"data", "text", "log")
    assert cache.load("cd" * 32) is None


def test_pruning_removes_the_least_recently_used(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    keys = [f"{index:02x}" * 32 for index in range(5)]
    now = time.time()
    for age, key in enumerate(keys):
        cache.store(key, Compiled(os.urandom(1000), "", ""))
        path = cache.directory / key[:2] / f"{key}.entry"
        os.utime(path, (now - 1000 + age, now - 1000 + age))
    size = (cache.directory / keys[0][:2] / f"{keys[0]}.entry").stat().st_size
    # Using the oldest makes it the newest.
    assert cache.load(keys[0]) is not None
    report = cache.prune(2 * size)
    assert (report.entries, report.removed) == (5, 3)
    assert (report.entry_bytes, report.removed_bytes) == (5 * size, 3 * size)
    assert [cache.load(key) is not None for key in keys] == [True, False, False, False, True]


def test_pruning_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    (cache.directory / "ab").mkdir()
    old, new = cache.directory / "ab" / "old.partial", cache.directory / "ab" / "new.partial"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    cache.prune()
    assert (old.exists(), new.exists()) == (False, True)


def test_compiling_keeps_the_cache_within_its_limit(tmp_path: Path) -> None:
    cache = dataclasses.replace(cache_at(tmp_path), limit_bytes=1)
    compile_units([UNIT], TARGET, toolchain="zig", cache=cache)
    assert list(cache.directory.glob("*/*.entry")) == []


def test_the_environment_is_read(tmp_path: Path) -> None:
    config = load_config({"FORGEC_CACHE_DIR": str(tmp_path / "c"), "FORGEC_DEBUG": "2"})
    assert config == Config(tmp_path / "c", 2)
    assert not (tmp_path / "c").exists()
    default = load_config({})
    assert default.debug == 0
    assert default.cache_dir.name == "forgec"
    assert load_config({"FORGEC_CACHE_DIR": "", "FORGEC_DEBUG": ""}) == default


@pytest.mark.parametrize("text", ["4", "-1", "yes", "1.0"])
def test_a_wrong_debug_step_is_an_error(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config({"FORGEC_DEBUG": text})
    assert caught.value.message == f"FORGEC_DEBUG is '{text}', expected a whole number from 0 to 3"


@pytest.mark.parametrize(
    ("debug", "level"), [(0, logging.WARNING), (1, logging.WARNING), (2, logging.INFO), (3, logging.DEBUG)]
)
def test_the_debug_ladder_sets_the_logging(debug: int, level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("forgec")
    monkeypatch.setattr(logger, "handlers", [])
    before = logger.level
    try:
        configure_logging(debug)
        configure_logging(debug)
        assert (logger.level, len(logger.handlers)) == (level, 1)
    finally:
        logger.setLevel(before)


def test_processes_may_share_the_cache(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    key = "ab" * 32
    versions = [Compiled(os.urandom(200_000), "text", "") for _ in range(4)]
    cache.store(key, versions[0])

    def work(version: Compiled) -> list[Compiled | None]:
        seen = []
        for _ in range(20):
            assert cache.store(key, version) is None
            seen.append(cache.load(key))
        return seen

    with ThreadPoolExecutor(4) as pool:
        for seen in pool.map(work, versions):
            assert all(entry in versions for entry in seen)
    assert [path.name for path in cache.directory.glob("*/*")] == [f"{key}.entry"]
