"""Conversions that die: killed processes, full disks, lost sources. Then the same command carries on."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from time import perf_counter

import pytest

from acestep_gguf.bundle.names import BUNDLE_FILE, Ftype
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.errors import BundleError, CheckpointError
from acestep_gguf.quantize.conversion_events import Event, Planned, Progress
from acestep_gguf.storage.unfinished import LOCK_FILE
from tests.support.killed_processes import contents, die_before_operation, run
from tests.support.tiny_checkpoints import TinyCheckpoint

FTYPES: tuple[Ftype, ...] = ("Q4_K_M", "Q8_0")

CLI = (sys.executable, "-m", "acestep_gguf.cli")


def convert(checkpoint: Path, out: Path) -> None:
    convert_checkpoint(checkpoint, out, FTYPES, name="Tiny", threads=2)


def convert_until(checkpoint: Path, out: Path, n_operations: int) -> None:
    """Die right before operation ``n_operations`` on a file in ``out``."""
    die_before_operation(n_operations, out)
    convert(checkpoint, out)


def assert_nothing_looks_finished_that_is_not(out: Path, expected: dict[str, bytes]) -> None:
    there = contents(out) if out.exists() else {}
    finished = {name: data for name, data in there.items() if not name.startswith(".")}
    assert finished.items() <= expected.items()
    assert BUNDLE_FILE not in finished or finished == expected


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = TinyCheckpoint(n_layers=6, n_shards=2)
    return tiny.write(tmp_path_factory.mktemp("crash") / "checkpoint")


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> dict[str, bytes]:
    """What an undisturbed conversion makes."""
    convert(checkpoint, checkpoint.parent / "expected")
    return contents(checkpoint.parent / "expected")


@pytest.mark.slow
def test_killed_before_each_operation_on_a_file(
    tmp_path: Path, checkpoint: Path, expected: dict[str, bytes]
) -> None:
    n_operations = 0
    while not run(convert_until, checkpoint, tmp_path / str(n_operations), n_operations):
        out = tmp_path / str(n_operations)
        assert_nothing_looks_finished_that_is_not(out, expected)
        convert(checkpoint, out)
        assert contents(out) == expected
        n_operations += 1
    assert contents(tmp_path / str(n_operations)) == expected
    assert n_operations >= 15


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path, checkpoint: Path, expected: dict[str, bytes]) -> None:
    """Again and again into the same folder until it is through, then into a new one."""
    started = perf_counter()
    assert run(convert, checkpoint, tmp_path / "undisturbed")
    seconds = perf_counter() - started
    rng = random.Random(0)
    n_killed = n_carried_on = n_folders = 0
    while n_killed < 24:
        out = tmp_path / str(n_folders)
        while not run(convert, checkpoint, out, kill_after=rng.uniform(0.0, 1.1 * seconds)):
            n_killed += 1
            n_carried_on += any(out.glob(".*.journal"))
            assert_nothing_looks_finished_that_is_not(out, expected)
        assert contents(out) == expected
        n_folders += 1
    assert n_carried_on >= 3


@pytest.mark.slow
def test_killed_command_line(tmp_path: Path, checkpoint: Path, expected: dict[str, bytes]) -> None:
    command = [*CLI, "convert", str(checkpoint), str(tmp_path / "out"), "--name", "Tiny", "--log-json"]
    command += [word for ftype in FTYPES for word in ("-q", ftype)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        # On a fast day it may be through by then: the next command must not mind.
        next((line for line in process.stdout if '"event":"progress"' in line), None)
        process.kill()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert contents(tmp_path / "out") == expected


class Interruption:
    """Calls ``happen`` once ``n_bytes`` are written; remembers what the first progress was."""

    def __init__(self, n_bytes: int, happen: Callable[[], None]) -> None:
        self._n_bytes = n_bytes
        self._happen = happen
        self._has_happened = False
        self.first_progress: Progress | None = None

    def __call__(self, event: Event) -> None:
        if not isinstance(event, Progress):
            return
        self.first_progress = self.first_progress or event
        if event.bytes_written >= self._n_bytes and not self._has_happened:
            self._has_happened = True
            self._happen()


def bytes_kept(checkpoint: Path, out: Path) -> int:
    """Finish a conversion; how much was there already."""
    watch = Interruption(0, lambda: None)
    convert_checkpoint(checkpoint, out, FTYPES, name="Tiny", threads=2, on_event=watch)
    assert watch.first_progress is not None
    return watch.first_progress.bytes_written


def test_the_last_whole_tensor_is_where_it_carries_on(
    tmp_path: Path, checkpoint: Path, expected: dict[str, bytes]
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    n_bytes = sum(map(len, expected.values())) // 2
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(
            checkpoint, tmp_path, FTYPES, name="Tiny", threads=2, on_event=Interruption(n_bytes, stop)
        )
    with pytest.raises(BundleError, match="the same `acestep-gguf convert` command"):
        Bundle.read(tmp_path)
    partial = {path.name: path.stat().st_size for path in tmp_path.glob(".*.gguf.partial")}
    assert set(partial) == {f".{name}.partial" for name in expected if name.endswith(".gguf")}
    largest_tensor = 512 * 256 * 4
    # The first progress is about the first of the two files.
    assert bytes_kept(checkpoint, tmp_path) >= min(partial.values()) - largest_tensor
    assert contents(tmp_path) == expected


def test_what_another_command_left_is_removed(
    tmp_path: Path, checkpoint: Path, expected: dict[str, bytes]
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(
            checkpoint, tmp_path, ["F32"], name="Tiny", threads=2, on_event=Interruption(10**6, stop)
        )
    assert any(tmp_path.glob(".*F32*.partial"))
    convert(checkpoint, tmp_path)
    assert contents(tmp_path) == expected


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_a_disk_that_fills_up(
    small_disk: Path, checkpoint: Path, expected: dict[str, bytes], share: float
) -> None:
    ballast = small_disk / "ballast"

    def fill() -> None:
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    out = small_disk / "out"
    n_bytes = int(share * sum(map(len, expected.values())))
    with pytest.raises(BundleError, match=r"No space left on device.*free disk space"):
        convert_checkpoint(
            checkpoint, out, FTYPES, name="Tiny", threads=2, on_event=Interruption(n_bytes, fill)
        )
    assert_nothing_looks_finished_that_is_not(out, expected)
    assert not out.exists() or not (out / LOCK_FILE).exists()
    ballast.unlink()
    assert bytes_kept(checkpoint, out) > 0.2 * n_bytes
    assert contents(out) == expected


def test_a_disk_that_is_too_small_is_found_before_anything_is_written(
    small_disk: Path, checkpoint: Path, expected: dict[str, bytes]
) -> None:
    out = small_disk / "out"
    (small_disk / "ballast").write_bytes(bytes(14 * 2**20))
    plans: list[Event] = []
    with pytest.raises(BundleError, match="but its disk has only") as raised:
        convert_checkpoint(checkpoint, out, FTYPES, name="Tiny", on_event=plans.append)
    (plan,) = plans
    assert isinstance(plan, Planned)
    # Sizes are exact, but for the int8 tower's: that is the most that it can take.
    planned = {file.file: file.bytes for file in plan.files}
    needed = {name: len(data) for name, data in expected.items() if name != BUNDLE_FILE}
    assert all(size == planned[name] for name, size in needed.items() if "int8" not in name)
    assert plan.bytes_needed == sum(planned.values()) >= sum(needed.values())
    assert plan.bytes_needed > plan.bytes_free
    assert f"needs {plan.bytes_needed:,} bytes for {len(needed)} files" in str(raised.value)
    assert not out.exists()


@pytest.mark.parametrize("loss", ["truncated", "truncated and touched"])
def test_a_source_that_is_lost_on_the_way(
    tmp_path: Path, checkpoint: Path, expected: dict[str, bytes], loss: str
) -> None:
    source = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, source)
    shard = sorted(source.glob("*.safetensors"))[1]

    def lose() -> None:
        os.truncate(shard, 20_000)

    n_bytes = sum(map(len, expected.values())) // 2
    with pytest.raises(CheckpointError, match=rf"{shard.name} is damaged \(it ended early\)"):
        convert_checkpoint(
            source, tmp_path / "out", FTYPES, name="Tiny", threads=2, on_event=Interruption(n_bytes, lose)
        )
    assert_nothing_looks_finished_that_is_not(tmp_path / "out", expected)
    with pytest.raises(CheckpointError, match="is damaged"):
        convert(source, tmp_path / "out")
    shard.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        convert(source, tmp_path / "out")
    shutil.copy2(checkpoint / shard.name, shard)
    if loss == "truncated and touched":
        # Nobody knows whether it is the same file as before: what came from it is read again.
        os.utime(shard)
        assert bytes_kept(source, tmp_path / "out") < n_bytes / 4
    else:
        assert bytes_kept(source, tmp_path / "out") > n_bytes / 4
    assert contents(tmp_path / "out") == expected


def test_a_second_process_is_refused(tmp_path: Path, checkpoint: Path, expected: dict[str, bytes]) -> None:
    errors: list[str] = []

    def convert_too() -> None:
        command = [
            sys.executable,
            "-m",
            "acestep_gguf.cli",
            "convert",
            str(checkpoint),
            str(tmp_path / "out"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        errors.append(done.stderr)

    out = tmp_path / "out"
    convert_checkpoint(checkpoint, out, FTYPES, name="Tiny", on_event=Interruption(10**6, convert_too))
    (error,) = errors
    assert error.startswith(f"error: another process is writing to {out}: wait for its end")
    assert error.count("\n") == 1
    assert contents(out) == expected
