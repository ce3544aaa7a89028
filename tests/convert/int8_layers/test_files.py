import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from acestep_gguf.bundle.names import PREFILL_FILE
from acestep_gguf.bundle.prefill_info import INT8, LayerWeight, PrefillLayout, check_prefill_file
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.bundle.verify import verify_bundle
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.convert.int8_layers import files
from acestep_gguf.convert.model import open_model
from acestep_gguf.convert.pipeline import plan_conversion
from acestep_gguf.errors import BundleError, CheckpointError
from acestep_gguf.quantize.staging import StagedFile
from tests.support.tiny_checkpoints import TinyCheckpoint

TINY = TinyCheckpoint(decoder="llama", n_kv_heads=2, has_tower=False)
DATA = f"{PREFILL_FILE}.data"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY.write(tmp_path_factory.mktemp("int8") / "checkpoint")


@pytest.fixture(scope="module")
def whole(checkpoint: Path) -> Path:
    """Read only."""
    convert_checkpoint(checkpoint, checkpoint.parent / "whole", ("F32",), prefill=True)
    return checkpoint.parent / "whole"


def layout_of(folder: Path) -> PrefillLayout:
    record = Bundle.read(folder).prefill
    assert record is not None
    return check_prefill_file(folder, record)


def test_each_output_has_its_own_scale(checkpoint: Path, whole: Path) -> None:
    layout = layout_of(whole)
    with open_model(checkpoint, None) as model:
        tensors = {name: tensor.read() for name, tensor in model.tensors.decoder.items()}
    for bid in range(2):
        arrays: dict[str, npt.NDArray[np.float32]] = {}
        for weight in layout.weights:
            dtype = np.int8 if weight.data_type == INT8 else np.float32
            offset = bid * layout.stride + weight.offset
            data = np.fromfile(layout.data, dtype, int(np.prod(weight.shape)), offset=offset)
            arrays[weight.name] = data.reshape(weight.shape).astype(np.float32)
        for name, parts in files.MATRICES.items():
            expected = np.concatenate([tensors[f"blk.{bid}.{part}.weight"] for part in parts])
            scale = arrays[f"{name}.scale"]
            assert np.array_equal(scale, np.abs(expected).max(axis=1) / 127)
            assert np.abs(arrays[f"{name}.weight"].T * scale[:, None] - expected).max() <= scale.max() / 1.99
            assert np.abs(arrays[f"{name}.weight"]).max() == 127
        for name in ("attn_norm.weight", "ffn_norm.weight"):
            assert np.array_equal(arrays[name], tensors[f"blk.{bid}.{name}"])


def test_the_plan_is_right_to_the_byte(checkpoint: Path, whole: Path, tmp_path: Path) -> None:
    planned = plan_conversion(checkpoint, tmp_path / "new", ("F32",), prefill=True)
    sizes = {file.file: file.bytes for file in planned.files}
    assert sizes == {file: (whole / file).stat().st_size for file in sizes}
    assert {file.label for file in planned.files} == {"F32", "prefill"}
    (data,) = (file for file in planned.files if file.file == DATA)
    assert data.types == {"F32": 14, "I8": 10}


def test_they_are_added_to_a_bundle_and_kept_by_later_conversions(
    checkpoint: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    assert convert_checkpoint(checkpoint, out, ("F32",)).prefill is None
    added = convert_checkpoint(checkpoint, out, ("F32",), prefill=True)
    assert added.prefill == Bundle.read(whole).prefill
    later = convert_checkpoint(checkpoint, out, ("Q8_0",))
    assert later.prefill == added.prefill
    (out / DATA).unlink()
    assert convert_checkpoint(checkpoint, out, ("Q8_0",)).prefill == added.prefill, "it was made again"
    assert verify_bundle(out).problems == ()


@pytest.mark.parametrize("n_steps", [1, 2, 11, 12, 13, 23])
def test_a_conversion_that_was_killed_is_carried_on_with(
    checkpoint: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_steps: int
) -> None:
    out, written = tmp_path / "bundle", []
    end_step = StagedFile.end_step

    def dying(file: StagedFile) -> None:
        end_step(file)
        if file.path.name == DATA:
            written.append(file.n_steps)
            if len(written) == n_steps:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StagedFile, "end_step", dying)
        with pytest.raises(KeyboardInterrupt):
            convert_checkpoint(checkpoint, out, ("F32",), prefill=True)
    began = []
    arrays = files.PlannedPrefill._arrays

    def watched(self: files.PlannedPrefill, bid: int, weights: Sequence[LayerWeight]) -> Any:
        began.append((bid, len(weights)))
        return arrays(self, bid, weights)

    monkeypatch.setattr(files.PlannedPrefill, "_arrays", watched)
    convert_checkpoint(checkpoint, out, ("F32",), prefill=True)
    assert began[0] == (n_steps // 12, 12 - n_steps % 12)
    for file in (PREFILL_FILE, DATA):
        assert (out / file).read_bytes() == (whole / file).read_bytes()


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    source = TINY.write(tmp_path / "checkpoint")
    weights = source / "model.safetensors"
    data = bytearray(weights.read_bytes())
    header_bytes = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + header_bytes])
    name = "model.layers.1.mlp.down_proj.weight"
    start = 8 + header_bytes + header[name]["data_offsets"][0]
    data[start : start + 2] = b"\x80\x7f"  # infinite in bfloat16
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        convert_checkpoint(source, tmp_path / "bundle", ("F32",), prefill=True)
    assert not (tmp_path / "bundle").exists()


def test_a_damaged_file_is_found_by_verify(whole: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "bundle"))
    data = bytearray((out / DATA).read_bytes())
    data[100] ^= 1
    (out / DATA).write_bytes(data)
    (problem,) = verify_bundle(out).problems
    assert DATA in problem
    assert "damaged" in problem
    (out / DATA).write_bytes(data[:-64])
    with pytest.raises(BundleError, match="half-copied"):
        layout_of(out)
