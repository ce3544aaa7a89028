import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acestep_gguf.convert.checkpoint.folder import INDEX_FILE, Checkpoint
from acestep_gguf.convert.checkpoint.safetensors_file import SafetensorsTensor
from acestep_gguf.errors import CheckpointError
from tests.support.tiny_checkpoints import TinyCheckpoint, write_safetensors


def sharded(folder: Path, weight_map: Any) -> Path:
    """A checkpoint whose shards a and b hold one tensor each."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    for name in "ab":
        write_safetensors(folder / f"{name}.safetensors", {name: np.ones((2, 2), np.float32)}, "F32")
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    single = TinyCheckpoint().write(tmp_path / "single")
    shards = TinyCheckpoint(n_shards=3).write(tmp_path / "shards")
    with Checkpoint(single) as one, Checkpoint(shards) as many:
        one.open_weights()
        many.open_weights()
        assert sorted(one.tensors) == sorted(many.tensors)
        assert one.weights_sha256() == many.weights_sha256()


def test_weights_hash_tells_other_weights_apart(tmp_path: Path) -> None:
    hashes = []
    for seed in (0, 1):
        with Checkpoint(TinyCheckpoint(seed=seed).write(tmp_path / str(seed))) as checkpoint:
            checkpoint.open_weights()
            hashes.append(checkpoint.weights_sha256())
    assert hashes[0] != hashes[1]


@pytest.mark.parametrize(
    "file_name",
    [
        "../a.safetensors",
        "/etc/a.safetensors",
        "sub/a.safetensors",
        "..\\a.safetensors",
        "a.bin",
        "",
        3,
        None,
    ],
)
def test_index_must_not_leave_the_folder(tmp_path: Path, file_name: Any) -> None:
    with (
        Checkpoint(sharded(tmp_path / "c", {"a": file_name})) as checkpoint,
        pytest.raises(CheckpointError, match="no weight file here"),
    ):
        checkpoint.open_weights()


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "a.safetensors", "b": "a.safetensors"}, "says that a.safetensors has b"),
        ({"a": "a.safetensors", "c": "b.safetensors"}, "says that b.safetensors has c"),
        ({"a": "a.safetensors", "b": "missing.safetensors"}, "is missing"),
        ({}, "no weight_map"),
        ([], "no weight_map"),
        (None, "no weight_map"),
    ],
)
def test_index_that_contradicts_the_files_is_an_error(tmp_path: Path, weight_map: Any, message: str) -> None:
    with (
        Checkpoint(sharded(tmp_path / "c", weight_map)) as checkpoint,
        pytest.raises(CheckpointError, match=message),
    ):
        checkpoint.open_weights()


def test_tensor_in_two_shards_is_an_error(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "c", {"a": "a.safetensors", "b": "b.safetensors"})
    both = {name: np.ones((2, 2), np.float32) for name in "ab"}
    write_safetensors(folder / "b.safetensors", both, "F32")
    with (
        Checkpoint(folder) as checkpoint,
        pytest.raises(CheckpointError, match=r"both in a\.safetensors and in b"),
    ):
        checkpoint.open_weights()


@given(
    weight_map=st.dictionaries(
        st.sampled_from("abc"), st.sampled_from(["a.safetensors", "b.safetensors", ".."])
    )
    | st.lists(st.text(max_size=3))
    | st.dictionaries(st.text(max_size=3), st.none() | st.integers() | st.text(max_size=20))
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_any_index_is_read_or_refused(tmp_path: Path, weight_map: Any) -> None:
    with Checkpoint(sharded(tmp_path / "c", weight_map)) as checkpoint:
        try:
            checkpoint.open_weights()
        except CheckpointError:
            return
        for tensor in checkpoint.tensors.values():
            assert isinstance(tensor, SafetensorsTensor)
            assert tensor.file.path.parent == tmp_path / "c"


def test_pickled_weights_get_a_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with Checkpoint(folder) as checkpoint, pytest.raises(CheckpointError, match=r"pickled \.bin"):
        checkpoint.open_weights()


def test_what_is_no_checkpoint_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        Checkpoint(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        Checkpoint(tmp_path)
    (tmp_path / "bundle.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is a bundle already"):
        Checkpoint(tmp_path)


def test_equal_tensors_are_found_equal(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    ones = np.ones((3, 5), np.float32)
    other = ones.copy()
    other[2, 4] = 2
    tensors = {"ones": ones, "same": ones, "other": other, "reshaped": ones.reshape(5, 3)}
    write_safetensors(folder / "model.safetensors", tensors, "BF16")
    with Checkpoint(folder) as checkpoint:
        checkpoint.open_weights()
        found = checkpoint.tensors
        assert Checkpoint.are_equal(found["ones"], found["same"])
        assert not Checkpoint.are_equal(found["ones"], found["other"])
        assert not Checkpoint.are_equal(found["ones"], found["reshaped"])
