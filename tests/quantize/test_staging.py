import hashlib
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from acestep_gguf.errors import BundleError
from acestep_gguf.quantize.staging import Staging


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
        assert [path.name for path in folder.iterdir()] == [".x.gguf.partial"]
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
