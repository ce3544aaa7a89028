import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acestep_gguf.engine.engine import AceStep
from acestep_gguf.errors import UsageError
from acestep_gguf.storage.atomic_file import write_atomically
from acestep_gguf.storage.disk_cache import DEFAULT_LIMIT, HEADER_BYTES, LIMIT_VARIABLE, DiskCache


def name(number: int) -> str:
    return f"state-{number:064x}"


def data(n_bytes: int, number: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, n_bytes, np.uint8)


def fill(cache: DiskCache, numbers: range, n_bytes: int) -> None:
    for number in numbers:
        cache.put(name(number), data(n_bytes, number))
        cache.close()
        os.utime(cache.folder / name(number), (1000 + number, 1000 + number))


def has(cache: DiskCache, number: int) -> bool:
    return (cache.folder / name(number)).exists()


def test_another_process_gets_what_was_put(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "new" / "folder")
    assert cache.get(name(1)) is None
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    cache.put(name(1), rows, data(5))
    assert not cache.folder.exists(), "nothing is written before it is said"
    cache.close()
    assert cache.folder.stat().st_mode & 0o777 == 0o700, "what was in pictures is nobody else's business"
    found = DiskCache(cache.folder).get(name(1))
    assert found is not None
    assert found.tobytes() == rows.tobytes() + data(5).tobytes()
    assert cache.contents().entries == 1
    assert cache.contents().bytes == HEADER_BYTES + len(found)
    cache.clear()
    assert cache.get(name(1)) is None
    assert cache.contents().entries == 0


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_entry_is_thrown_away(tmp_path: Path, draw: st.DataObject) -> None:
    cache = DiskCache(tmp_path)
    cache.put(name(1), data(40))
    cache.close()
    path = tmp_path / name(1)
    whole = path.read_bytes()
    changes = st.one_of(
        st.integers(0, 8 * len(whole) - 1).map(
            lambda bit: whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :]
        ),
        st.integers(0, len(whole) - 1).map(lambda length: whole[:length]),
        st.binary(min_size=1, max_size=50).map(lambda more: whole + more),
        st.binary(max_size=200),
    )
    path.write_bytes(draw.draw(changes.filter(lambda changed: changed != whole)))
    assert cache.get(name(1)) is None
    assert not path.exists()


def test_an_entry_under_another_name_is_thrown_away(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    cache.put(name(1), data(40))
    cache.close()
    (tmp_path / name(1)).rename(tmp_path / name(2))
    assert cache.get(name(2)) is None
    assert not has(cache, 2)


def test_what_is_being_written_can_be_waited_for(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    cache.put(name(1), data(50_000_000))
    cache.write()
    cache.finish_writing()
    assert has(cache, 1)


def test_what_is_no_file_is_no_entry(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, limit=10**6)
    os.mkfifo(tmp_path / name(1))
    (tmp_path / name(2)).mkdir()
    (tmp_path / name(3)).symlink_to("/dev/zero")
    (tmp_path / name(4)).symlink_to(tmp_path / "nowhere")
    with (tmp_path / name(5)).open("wb") as sparse:
        sparse.truncate(10**12)
    for number in range(1, 6):
        assert cache.get(name(number)) is None


def test_the_least_recently_used_entries_are_given_up(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, limit=3 * (HEADER_BYTES + 100))
    fill(cache, range(3), 100)
    assert cache.get(name(0)) is not None  # used just now
    cache.put(name(3), data(100))
    cache.close()
    assert [has(cache, number) for number in range(4)] == [True, False, True, True]
    assert not cache.takes(3 * (HEADER_BYTES + 100) - HEADER_BYTES + 1)
    cache.put(name(4), data(1000))
    cache.close()
    assert cache.contents().entries == 3, "what has no room makes none"
    cache.put(name(5), data(300))
    cache.close()
    assert cache.contents().entries == 1


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine" * 100)
    cache = DiskCache(tmp_path, limit=2 * (HEADER_BYTES + 100))
    fill(cache, range(5), 100)
    assert cache.contents().entries == 2
    cache.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_what_a_killed_process_left_is_removed_later(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    mine, abandoned = (tmp_path / f".{name(1)}.{suffix}.partial" for suffix in ("0123abcd", "4567cdef"))
    mine.write_bytes(b"x")
    abandoned.write_bytes(b"x")
    os.utime(abandoned, (time.time() - 7200,) * 2)
    cache.put(name(1), data(10))
    cache.close()
    assert mine.exists()
    assert not abandoned.exists()
    cache.clear()
    assert not list(tmp_path.iterdir())


# An answer goes on without what it cannot reach or write; the reason is said once.
UNUSABLE = r"cannot be used \({}\), so answers take longer: check it, or choose another one"


def use_in_vain(cache: DiskCache) -> None:
    assert cache.get(name(1)) is None
    cache.put(name(1), data(10))
    cache.close()
    assert cache.get(name(1)) is None
    assert cache.contents().entries == 0


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = DiskCache(tmp_path / "file" / "folder")
    with pytest.warns(UserWarning, match=UNUSABLE.format("Not a directory")) as warned:
        use_in_vain(cache)
    assert len(warned) == 1
    cache.clear()


def test_a_folder_that_cannot_be_reached_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LIMIT_VARIABLE, raising=False)
    cache = DiskCache(Path("x" * 300))
    with pytest.warns(UserWarning, match=UNUSABLE.format("File name too long")) as warned:
        use_in_vain(cache)
    assert len(warned) == 1
    assert cache.limit() == 0
    assert not cache.takes(1)
    with pytest.raises(OSError, match="File name too long"):
        cache.clear()
    with pytest.raises(UsageError, match="null character"):
        DiskCache(Path("nu\0ll"))


def test_an_answer_goes_on_without_a_folder_that_cannot_be_reached(
    tiny_bundle: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(LIMIT_VARIABLE, raising=False)
    with (
        pytest.warns(UserWarning, match=UNUSABLE.format("File name too long")) as warned,
        AceStep(tiny_bundle, n_threads=1, n_ctx=256, cache="x" * 300) as model,
    ):
        assert model.generate("What is this?", [picture], max_tokens=4).usage.completion_tokens > 0
    assert len(warned) == 1


@pytest.mark.parametrize("limit", [None, 10**6])
def test_a_folder_behind_one_that_is_not_ours_is_no_error(tmp_path: Path, limit: int | None) -> None:
    folder = tmp_path / "closed" / "folder"
    DiskCache(folder, limit).close()
    folder.mkdir(parents=True)
    folder.parent.chmod(0)
    code = """
import os, sys, warnings
from pathlib import Path
from acestep_gguf.storage.disk_cache import DiskCache
if os.geteuid() == 0:  # whom nothing is forbidden
    os.seteuid(65534)
warnings.simplefilter("always")
cache = DiskCache(Path(sys.argv[1]), eval(sys.argv[2]))
print(cache.get("state-" + 64 * "0"), cache.takes(10))
"""
    command = [sys.executable, "-c", code, str(folder), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    folder.parent.chmod(0o700)
    assert (done.returncode, done.stdout) == (0, f"None {limit is not None}\n")
    assert done.stderr.count("cannot be used (Permission denied)") == 1


def test_a_full_disk_is_no_error(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    cache.put(name(1), data(10**5))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # a longer file cannot be written
    try:
        with pytest.warns(UserWarning, match=UNUSABLE.format("File too large")):
            cache.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_entries_are_for_their_owner_only_in_an_open_folder_too(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    cache = DiskCache(tmp_path)
    cache.put(name(1), data(10))
    before = os.umask(0)
    try:
        cache.close()
    finally:
        os.umask(before)
    assert (tmp_path / name(1)).stat().st_mode & 0o777 == 0o600
    assert tmp_path.stat().st_mode & 0o777 == 0o777, "it is not ours to change"
    assert cache.get(name(1)) is not None


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_an_entry_that_others_may_have_written_is_not_used(tmp_path: Path, mode: int) -> None:
    cache = DiskCache(tmp_path)
    fill(cache, range(2), 10)
    (tmp_path / name(0)).chmod(mode)
    (tmp_path / name(1)).chmod(0o644)  # who may read it changes nothing in it
    with pytest.warns(UserWarning, match=UNUSABLE.format("others may have written an entry in it")):
        assert cache.get(name(0)) is None
    assert cache.get(name(1)) is not None
    fill(cache, range(1), 10)  # as it is computed again
    assert cache.get(name(0)) is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to another user")
def test_an_entry_of_another_user_is_not_used(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    fill(cache, range(1), 10)
    os.chown(tmp_path / name(0), 12345, -1)
    with pytest.warns(UserWarning, match="others may have written"):
        assert cache.get(name(0)) is None


def test_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LIMIT_VARIABLE, raising=False)
    assert 0 < DiskCache(tmp_path / "not" / "there").limit() <= DEFAULT_LIMIT
    for text, limit in (("500B", 500), ("2K", 2000), ("3MiB", 3 * 2**20), ("8G", 8 * 10**9), ("0", 0)):
        monkeypatch.setenv(LIMIT_VARIABLE, text)
        assert DiskCache(tmp_path).limit() == limit
    for text in ("-1", "500", "lots", "1e9", "9" * 16):
        monkeypatch.setenv(LIMIT_VARIABLE, text)
        with pytest.raises(UsageError, match="give a size with its unit"):
            DiskCache(tmp_path)


def test_processes_share_a_folder(tmp_path: Path) -> None:
    """Each of four writes, reads and gives up entries that the others do too; all that is read is sound."""
    code = """
import sys
from pathlib import Path
import numpy as np
from acestep_gguf.storage.atomic_file import write_atomically
from acestep_gguf.storage.disk_cache import DiskCache
cache = DiskCache(Path(sys.argv[1]), limit=20_000)
found = 0
for i in range(60):
    number = i * int(sys.argv[2]) % 13
    name, content = f"state-{number:064x}", np.full(3000, number, np.uint8)
    data = cache.get(name)
    if data is None:
        cache.put(name, content)
        cache.close()
    else:
        assert data.tobytes() == content.tobytes()
        found += 1
print(found)
"""
    commands = [[sys.executable, "-c", code, str(tmp_path), str(step)] for step in (1, 2, 3, 5)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    found = [int(process.communicate(timeout=60)[0]) for process in running]
    assert all(process.returncode == 0 for process in running)
    assert sum(found) > 0
    assert all(path.name.startswith("state-") for path in tmp_path.iterdir())
    assert DiskCache(tmp_path).contents().bytes <= 20_000 + 3 * 3040


def test_writing_does_not_hold_up_who_asked_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = DiskCache(tmp_path)
    go_on = threading.Event()

    def slow_disk(path: Path, parts: list[bytes], **options: Any) -> None:
        go_on.wait(60)
        write_atomically(path, parts, **options)

    monkeypatch.setattr("acestep_gguf.storage.disk_cache.write_atomically", slow_disk)
    cache.put(name(1), data(10))
    cache.write()
    assert cache.get(name(1)) is None
    go_on.set()
    cache.close()
    assert cache.get(name(1)) is not None
