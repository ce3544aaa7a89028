import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acestep_gguf.convert.checkpoint.safetensors_file import SafetensorsTensor
from acestep_gguf.convert.checkpoint.weight import are_equal
from acestep_gguf.convert.checkpoint.weight_files import INDEX_FILE, open_weights
from acestep_gguf.errors import CheckpointError
from tests.support.tiny_checkpoints import TinyCheckpoint, write_safetensors


def sharded(folder: Path, weight_map: Any) -> Path:
    """A checkpoint whose shards a and b hold one tensor each."""
    folder.mkdir(exist_ok=True)
    for name in "ab":
        write_safetensors(folder / f"{name}.safetensors", {name: np.ones((2, 2), np.float32)}, "F32")
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def refuse(folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message), open_weights(folder, None):
        pass


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    single = TinyCheckpoint().write(tmp_path / "single")
    shards = TinyCheckpoint(n_shards=3).write(tmp_path / "shards")
    with open_weights(single, None) as one, open_weights(shards, None) as many:
        assert sorted(one.tensors) == sorted(many.tensors)
        for name, tensor in one.tensors.items():
            assert np.array_equal(tensor.read(), many.tensors[name].read())


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
    refuse(sharded(tmp_path / "c", {"a": file_name}), "cannot be a weight file of this folder")


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "a.safetensors", "b": "a.safetensors"}, "says that b is in a.safetensors, but it is not"),
        ({"a": "a.safetensors", "c": "b.safetensors"}, "says that c is in b.safetensors, but it is not"),
        ({"a": "a.safetensors", "b": "missing.safetensors"}, "is missing"),
        ({}, "no weight_map"),
        ([], "no weight_map"),
        (None, "no weight_map"),
    ],
)
def test_index_that_contradicts_the_files_is_an_error(tmp_path: Path, weight_map: Any, message: str) -> None:
    refuse(sharded(tmp_path / "c", weight_map), message)


def test_tensor_in_two_shards_is_an_error(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "c", {"a": "a.safetensors", "b": "b.safetensors"})
    both = {name: np.ones((2, 2), np.float32) for name in "ab"}
    write_safetensors(folder / "b.safetensors", both, "F32")
    refuse(folder, r"both in a\.safetensors and in b")


@given(
    weight_map=st.dictionaries(
        st.sampled_from("abc"), st.sampled_from(["a.safetensors", "b.safetensors", ".."])
    )
    | st.lists(st.text(max_size=3))
    | st.dictionaries(st.text(max_size=3), st.none() | st.integers() | st.text(max_size=20))
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_any_index_is_read_or_refused(tmp_path: Path, weight_map: Any) -> None:
    try:
        with open_weights(sharded(tmp_path / "c", weight_map), None) as weights:
            for tensor in weights.tensors.values():
                assert isinstance(tensor, SafetensorsTensor)
                assert tensor.file.path.parent == tmp_path / "c"
    except CheckpointError:
        return


def test_pickled_weights_get_a_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    refuse(folder, r"pickled \.bin")


def test_equal_tensors_are_found_equal(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    ones = np.ones((3, 5), np.float32)
    other = ones.copy()
    other[2, 4] = 2
    tensors = {"ones": ones, "same": ones, "other": other, "reshaped": ones.reshape(5, 3)}
    write_safetensors(folder / "model.safetensors", tensors, "BF16")
    with open_weights(folder, None) as weights:
        found = weights.tensors
        assert are_equal(found["ones"], found["same"])
        assert not are_equal(found["ones"], found["other"])
        assert not are_equal(found["ones"], found["reshaped"])
