import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from acestep_gguf.convert.checkpoint.identity import (
    HASHES_FILE,
    N_SAMPLED_BYTES,
    hashing,
    sampled_sha256,
    tensors_sha256,
)
from acestep_gguf.convert.checkpoint.safetensors_file import SafetensorsFile
from acestep_gguf.convert.checkpoint.weight_files import open_weights
from acestep_gguf.errors import SourceLostError
from acestep_gguf.quantize.staging import Staging
from acestep_gguf.storage.unfinished import leftovers
from tests.support.tiny_checkpoints import TinyCheckpoint

TINY = TinyCheckpoint(n_layers=11)


def hashes(folder: Path) -> tuple[str, str]:
    """Of the sample, and of everything."""
    with open_weights(folder, None) as weights, ThreadPoolExecutor(2) as executor:
        return sampled_sha256(weights.stored), tensors_sha256(weights.stored, executor)


def flip_last_bit(path: Path, name: str) -> None:
    """Of the tensor ``name``."""
    with SafetensorsFile(path) as file:
        tensor = file.tensors[name]
    content = bytearray(path.read_bytes())
    content[tensor.offset + tensor.n_bytes - 1] ^= 1
    path.write_bytes(content)


def test_shards_do_not_matter(tmp_path: Path) -> None:
    single = TINY.write(tmp_path / "single")
    shards = TinyCheckpoint(n_layers=11, n_shards=3).write(tmp_path / "shards")
    assert hashes(single) == hashes(shards)


def test_another_training_has_other_hashes(tmp_path: Path) -> None:
    one, other = (hashes(TinyCheckpoint(seed=seed).write(tmp_path / str(seed))) for seed in (0, 1))
    assert one[0] != other[0]
    assert one[1] != other[1]


@pytest.mark.parametrize(
    "name",
    [
        "language_model.model.embed_tokens.weight",
        "language_model.model.layers.1.mlp.down_proj.weight",
        "vision_tower.vision_model.encoder.layers.2.mlp.fc1.weight",  # behind the last one that is needed
    ],
)
def test_one_bit_anywhere_is_seen(tmp_path: Path, name: str) -> None:
    folder = TINY.write(tmp_path / "c")
    before = hashes(folder)
    flip_last_bit(folder / "model.safetensors", name)
    after = hashes(folder)
    assert after[0] == before[0]  # the sample is of the first bytes
    assert after[1] != before[1]


@pytest.mark.parametrize("n_threads", [1, 16])
def test_beside_a_conversion_the_hash_is_the_same_and_nothing_is_left(tmp_path: Path, n_threads: int) -> None:
    folder = TINY.write(tmp_path / "c")
    with open_weights(folder, None) as weights, Staging(tmp_path / "out") as staging:
        with hashing(weights.stored, staging, n_threads) as found:
            staging.create("x").write(b"x")
            assert found.result() == hashes(folder)[1]
        staging.publish()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x"]


def carry_on(folder: Path, out: Path) -> str:
    with open_weights(folder, None) as weights, Staging(out) as staging:
        with hashing(weights.stored, staging, 1) as found:
            sha256 = found.result()
        staging.publish()
    return sha256


def test_an_interrupted_run_is_carried_on_with(tmp_path: Path) -> None:
    folder, out = TINY.write(tmp_path / "c"), tmp_path / "out"

    def stop() -> None:
        with open_weights(folder, None) as weights, Staging(out) as staging:
            with hashing(weights.stored, staging, 1) as found:
                found.result()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert {path.name for path in leftovers(out)} == {f".{HASHES_FILE}.partial", f".{HASHES_FILE}.journal"}
    before = hashes(folder)[1]
    # A change that the file's state does not show is not seen: so nothing was read again.
    path = folder / "model.safetensors"
    status = path.stat()
    flip_last_bit(path, "language_model.model.embed_tokens.weight")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert carry_on(folder, out) == before
    assert leftovers(out) == []

    with pytest.raises(KeyboardInterrupt):
        stop()
    os.utime(path)
    assert carry_on(folder, out) == hashes(folder)[1] != before


def test_it_stops_when_what_it_is_beside_fails(tmp_path: Path) -> None:
    folder = TINY.write(tmp_path / "c")

    def fail() -> None:
        with (
            open_weights(folder, None) as weights,
            Staging(tmp_path / "out") as staging,
            hashing(weights.stored, staging, 1),
        ):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not (tmp_path / "out").exists()


def test_a_file_that_ends_early_is_an_error_of_the_hash(tmp_path: Path) -> None:
    folder = TINY.write(tmp_path / "c")

    def lose() -> None:
        with open_weights(folder, None) as weights, Staging(tmp_path / "out") as staging:
            name = "language_model.model.embed_tokens.weight"
            tensor = weights.stored[name]
            os.truncate(tensor.file.path, tensor.offset + N_SAMPLED_BYTES)
            with hashing({name: tensor}, staging, 1) as found:
                found.result()

    with pytest.raises(SourceLostError, match="it ended early"):
        lose()
