import hashlib
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep_gguf.errors import BundleError, CheckpointError, SourceLostError
from acestep_gguf.quantize.staging import Staging
from acestep_gguf.storage.unfinished import LOCK_FILE, journal_path, leftovers


@contextmanager
def files_no_larger_than(n_bytes: int) -> Iterator[None]:
    """The kernel fails writes beyond ``n_bytes`` of a file, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_files_appear_when_they_are_published(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with Staging(folder) as staging:
        file = staging.create("x.gguf")
        file.write(b"head")
        file.pad_to(8)
        file.write(memoryview(b"tail"))
        assert {path.name for path in folder.iterdir()} == {".x.gguf.partial", LOCK_FILE}
        assert (file.n_bytes, file.sha256) == (12, hashlib.sha256(b"head\0\0\0\0tail").hexdigest())
        staging.publish()
    assert [path.name for path in folder.iterdir()] == ["x.gguf"]
    assert (folder / "x.gguf").read_bytes() == b"head\0\0\0\0tail"


@pytest.mark.parametrize("is_published", [False, True])
def test_an_error_leaves_nothing(tmp_path: Path, is_published: bool) -> None:
    def spoil() -> None:
        with Staging(tmp_path / "a" / "b") as staging:
            staging.create("x").write(b"x")
            if is_published:
                staging.publish()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spoil()
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_the_files_and_folders_of_others(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("other")

    def spoil() -> None:
        with Staging(tmp_path) as staging:
            staging.create("x").write(b"x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spoil()
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    def fill() -> None:
        with Staging(tmp_path / "out") as staging, files_no_larger_than(1000):
            staging.create("x").write(bytes(100_000))

    with pytest.raises(BundleError, match=r"cannot be written .*free disk space"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="cannot be written"), Staging(tmp_path / "file" / "out"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


STEPS = [b"header and first", b"second", b"", b"a fourth step"]
STAMPS = ["a", "a", "b", "b"]
WHOLE = b"".join(STEPS)


def write_steps(
    folder: Path,
    *,
    upto: int = len(STEPS),
    identity: str = "same",
    stamps: Sequence[str] = STAMPS,
    error: BaseException | None = None,
) -> int:
    """Write the steps of ``x`` up to number ``upto``, then fail or publish; how many there were before."""
    with Staging(folder) as staging:
        file = staging.create_resumable("x", identity=identity, stamps=stamps)
        n_before = file.n_steps
        for step in STEPS[n_before:upto]:
            file.write(step)
            file.end_step()
        if error:
            file.write(b"half of a st")
            raise error
        assert file.sha256 == hashlib.sha256(WHOLE).hexdigest()
        staging.publish()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"x": WHOLE}
    return n_before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space"), SourceLostError("gone")])
@pytest.mark.parametrize("upto", range(1, len(STEPS) + 1))
def test_whole_steps_are_kept(tmp_path: Path, error: BaseException, upto: int) -> None:
    with pytest.raises((KeyboardInterrupt, BundleError, SourceLostError)):
        write_steps(tmp_path / "out", upto=upto, error=error)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".x.journal", ".x.partial"]
    assert write_steps(tmp_path / "out") == upto


def test_a_full_disk_says_that_the_same_command_carries_on(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="free disk space, then the same command carries on, or"):
        write_steps(tmp_path, upto=2, error=OSError(28, "No space left on device"))
    with pytest.raises(BundleError, match=r"free disk space or"):
        write_steps(tmp_path / "new", upto=0, error=OSError(28, "No space left on device"))
    assert not (tmp_path / "new").exists()


def test_steps_of_what_can_never_succeed_are_not_kept(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        write_steps(tmp_path / "out", upto=2, error=CheckpointError("NaN"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "n_kept"),
    [
        ({"identity": "other"}, 0),
        ({"stamps": ["other", "a", "b", "b"]}, 0),
        ({"stamps": ["a", "a", "other", "b"]}, 2),
        ({"stamps": ["a", "a", "b", "other"]}, 3),
    ],
)
def test_what_was_made_from_something_else_is_made_again(
    tmp_path: Path, changes: dict[str, Any], n_kept: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_steps(tmp_path, error=KeyboardInterrupt())
    assert write_steps(tmp_path, **changes) == n_kept


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_journal_that_lost_a_line_counts_up_to_there(tmp_path: Path, lost: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_steps(tmp_path, upto=3, error=KeyboardInterrupt())
    journal = tmp_path / ".x.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(line for number, line in enumerate(lines) if number != lost))
    assert write_steps(tmp_path) == lost - 1


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_whatever_a_failing_machine_left_the_file_comes_out_whole(data: st.DataObject) -> None:
    """Either file may be cut anywhere, or have bytes that never reached the disk."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with pytest.raises(KeyboardInterrupt):
            write_steps(folder, upto=data.draw(st.integers(1, 4)), error=KeyboardInterrupt())
        for name in (".x.partial", ".x.journal"):
            content = (folder / name).read_bytes()
            start = data.draw(st.integers(0, len(content)), label=f"{name} from")
            stop = data.draw(st.integers(start, len(content)), label="to")
            put = data.draw(st.sampled_from([content[start:stop], bytes(stop - start), b"", b"\xff{[\n"]))
            (folder / name).write_bytes(content[:start] + put + content[stop:])
        write_steps(folder)


def publish_and_be_killed(folder: Path) -> None:
    """Leave ``x`` under its own name and its journal, as a kill between two files does."""
    with Staging(folder) as staging:
        file = staging.create_resumable("x", identity="same", stamps=STAMPS)
        for step in STEPS:
            file.write(step)
            file.end_step()
        staging.publish()
        raise KeyboardInterrupt


def test_a_file_that_was_published_before_the_end_is_carried_on_with(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        publish_and_be_killed(tmp_path)
    assert (tmp_path / "x").read_bytes() == WHOLE
    assert journal_path(tmp_path / "x").exists()
    before = (tmp_path / "x").stat()
    assert write_steps(tmp_path) == 4
    assert (tmp_path / "x").stat().st_ino == before.st_ino


@pytest.mark.parametrize("error", [KeyboardInterrupt(), CheckpointError("NaN")])
def test_a_file_that_was_published_before_the_end_stays_after_any_failure(
    tmp_path: Path, error: BaseException
) -> None:
    with pytest.raises(KeyboardInterrupt):
        publish_and_be_killed(tmp_path)

    def fail() -> None:
        with Staging(tmp_path) as staging:
            staging.create_resumable("x", identity="same", stamps=STAMPS)
            assert (tmp_path / "x").read_bytes() == WHOLE
            raise error

    with pytest.raises(type(error)):
        fail()
    assert (tmp_path / "x").read_bytes() == WHOLE


@pytest.mark.parametrize("upto", range(1, len(STEPS) + 1))
@pytest.mark.parametrize(
    "content",
    [b"an older output", WHOLE + b"longer", bytes(len(WHOLE)), WHOLE[:-1]],
    ids=["other", "longer", "of the same size", "shorter"],
)
def test_a_journal_without_its_partial_file_says_nothing_about_a_finished_one(
    tmp_path: Path, upto: int, content: bytes
) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_steps(tmp_path, upto=upto, error=KeyboardInterrupt())
    (tmp_path / ".x.partial").unlink()
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointError):
        write_steps(tmp_path, error=CheckpointError("NaN"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"x": content}


def test_an_older_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"older")
    for error in (KeyboardInterrupt(), CheckpointError("NaN")):
        with pytest.raises((KeyboardInterrupt, CheckpointError)):
            write_steps(tmp_path, upto=3, error=error)
        assert (tmp_path / "x").read_bytes() == b"older"
    assert leftovers(tmp_path) == []
    write_steps(tmp_path)


def test_writes_and_steps_are_counted_those_of_before_too(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_steps(tmp_path, upto=2, error=KeyboardInterrupt())
    counted: list[tuple[int, int]] = []
    with Staging(tmp_path, lambda *counts: counted.append(counts)) as staging:
        file = staging.create_resumable("x", identity="same", stamps=STAMPS)
        assert counted == [(len(STEPS[0] + STEPS[1]), 2)]
        file.write(b"abc")
        file.end_step()
        assert counted[1:] == [(3, 0), (0, 1)]
        staging.publish()


def test_a_second_process_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from acestep_gguf.quantize.staging import Staging\n"
        f"with Staging(Path({str(tmp_path)!r})) as staging: print('in')"
    )

    def enter() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    with Staging(tmp_path) as staging:
        staging.create("x").write(b"x")
        refused = enter()
        assert refused.returncode != 0
        assert f"another process is writing to {tmp_path}: wait for its end" in refused.stderr
        assert (tmp_path / LOCK_FILE).exists()
        staging.publish()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert enter().stdout == "in\n"


def test_a_lock_of_a_process_that_died_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text("")
    write_steps(tmp_path)
