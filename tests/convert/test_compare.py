import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as QType
from gguf import quants

from acestep_gguf.bundle.gguf_header import read_gguf_header
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.bundle.verify import verify_bundle
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.convert.checkpoint.safetensors_file import SafetensorsFile
from acestep_gguf.convert.compare import MARGIN, NORMAL_ERROR, compare_with_checkpoint
from acestep_gguf.errors import CheckpointError
from acestep_gguf.quantize.ggml import quantize_rows
from acestep_gguf.quantize.recipe_tables import WEIGHED_TYPES
from acestep_gguf.quantize.steering import STEERABLE_TYPES
from tests.support.tiny_checkpoints import TinyCheckpoint, write_safetensors


def test_every_type_that_can_be_made_has_a_limit() -> None:
    assert set(NORMAL_ERROR) == set(STEERABLE_TYPES)


@pytest.mark.parametrize(
    "qtype",
    [pytest.param(qtype, marks=[pytest.mark.slow] * (qtype in WEIGHED_TYPES)) for qtype in NORMAL_ERROR],
)
def test_the_error_of_normal_weights(qtype: QType) -> None:
    rows = np.random.default_rng(0).standard_normal((16, 2048)).astype(np.float32)
    if qtype == QType.F32:
        blocks = rows.view(np.uint8)
    else:
        # Some types cannot be made without importance; with ones, all weigh the same.
        made = quantize_rows(rows, qtype, np.ones(2048, np.float32) if qtype in WEIGHED_TYPES else None)
        assert made is not None
        blocks = made
    error = quants.dequantize(blocks, qtype) - rows
    measured = np.sqrt(np.square(error).sum() / np.square(rows).sum())
    assert measured == pytest.approx(NORMAL_ERROR[qtype], rel=0.06)


def test_a_bundle_and_its_checkpoint(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    by_ftype = {found.ftype: found for found in compare_with_checkpoint(tiny_bundle, tiny_checkpoint)}
    assert list(by_ftype) == ["Q4_K_M", "Q8_0", "F32"]
    n_tensors = {sum(of.n_tensors for of in found.errors) for found in by_ftype.values()}
    assert len(n_tensors) == 1
    for found in by_ftype.values():
        assert found.problems == ()
        for of in found.errors:
            # Random weights cost what the table says; F32 keeps bfloat16 as it is.
            assert of.mean <= of.worst <= of.limit
            assert of.mean == pytest.approx(of.limit / MARGIN, rel=0.1)
    (exact,) = by_ftype["F32"].errors
    assert (exact.qtype, exact.worst) == ("F32", 0.0)
    assert {of.qtype for of in by_ftype["Q4_K_M"].errors} == {"F32", "Q6_K", "Q4_K"}


def test_another_checkpoint_of_the_same_shape(tiny_bundle: Path, tmp_path: Path) -> None:
    other = TinyCheckpoint(seed=1).write(tmp_path / "other")
    for found in compare_with_checkpoint(tiny_bundle, other):
        assert "was not made from" in found.problems[0]
        text = " ".join(found.problems)
        assert "blk.0.attn_q.weight is off by 1.4" in text
        assert "blk.1.ffn_down.weight is off by 1.4" in text


def test_another_training_that_quantization_hides(tmp_path: Path) -> None:
    """One weight differs by less than Q8_0 costs."""
    tiny = TinyCheckpoint(has_tower=False, n_layers=1, dtype="F32")
    checkpoint = tiny.write(tmp_path / "checkpoint")
    convert_checkpoint(checkpoint, tmp_path / "bundle", ("Q8_0",))
    weights = tiny.tensors()
    weights["lm_head.weight"][-1, -1] += 1e-6
    write_safetensors(checkpoint / "model.safetensors", weights, "F32")
    ((problem,),) = (found.problems for found in compare_with_checkpoint(tmp_path / "bundle", checkpoint))
    assert "was not made from" in problem


def test_another_shape_and_other_names(tiny_bundle: Path, tmp_path: Path) -> None:
    fewer = TinyCheckpoint(n_layers=1, intermediate_size=768).write(tmp_path / "fewer")
    text = " ".join(compare_with_checkpoint(tiny_bundle, fewer)[0].problems)
    assert "tensor blk.0.ffn_up.weight has the shape [512, 256], in the checkpoint [768, 256]" in text
    assert "tensor blk.1.attn_q.weight is not in the checkpoint" in text
    more = TinyCheckpoint(n_layers=3).write(tmp_path / "more")
    assert "tensor blk.2.attn_q.weight is missing" in " ".join(
        compare_with_checkpoint(tiny_bundle, more)[0].problems
    )


def test_one_spoiled_tensor_is_found(bundle_copy: Path, tiny_checkpoint: Path) -> None:
    """Two rows swapped: every block is sound, and the file's hash may have been recorded afterwards."""
    path = bundle_copy / Bundle.read(bundle_copy).decoder("Q8_0").file
    (tensor,) = [of for of in read_gguf_header(path).tensors if of.name == "blk.1.attn_k.weight"]
    row = tensor.nbytes // tensor.dims[1]
    data = bytearray(path.read_bytes())
    first, second = (slice(tensor.offset + i * row, tensor.offset + (i + 1) * row) for i in range(2))
    data[first], data[second] = data[second], data[first]
    path.write_bytes(data)
    problems = [found.problems for found in compare_with_checkpoint(bundle_copy, tiny_checkpoint)]
    assert [len(of) for of in problems] == [0, 1, 0]
    assert "blk.1.attn_k.weight is off by" in problems[1][0]
    assert verify_bundle(bundle_copy, quick=True).problems == ()


def test_tied_embeddings_and_no_tower(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint(has_tower=False, tied=True, n_layers=1, dtype="F32").write(tmp_path / "tied")
    convert_checkpoint(checkpoint, tmp_path / "bundle", ("Q4_K_M", "BF16", "F16"))
    assert not any(found.problems for found in compare_with_checkpoint(tmp_path / "bundle", checkpoint))


def test_weights_that_are_all_zero(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint(n_layers=1).write(tmp_path / "checkpoint")
    path = checkpoint / "model.safetensors"
    opened = SafetensorsFile(path)
    (tensor,) = [
        of for of in opened.tensors.values() if of.name.endswith("k_proj.weight") and "language" in of.name
    ]
    opened.close()
    with path.open("r+b") as file:
        file.seek(tensor.offset)
        file.write(bytes(tensor.n_bytes))
    convert_checkpoint(checkpoint, tmp_path / "bundle", ("Q4_K_M",))
    (found,) = compare_with_checkpoint(tmp_path / "bundle", checkpoint)
    assert found.problems == ()
    assert all(0 <= of.mean <= of.limit for of in found.errors)


def test_the_checkpoint_must_be_one(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        compare_with_checkpoint(tiny_bundle, tmp_path)


def verify(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "acestep_gguf.cli", "verify", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_command_line(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    sound = verify(tiny_bundle, "--checkpoint", tiny_checkpoint)
    assert (sound.returncode, sound.stderr) == (0, "")
    assert "Q4_K_M   Q6_K" in sound.stdout

    other = TinyCheckpoint(seed=1).write(tmp_path / "other")
    wrong = verify(tiny_bundle, "--quick", "--checkpoint", other, "--json")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: ")
    assert wrong.stderr.count("\n") == 1
    content = json.loads(wrong.stdout)
    assert content["ok"] is False
    assert all(decoder["problems"] for decoder in content["decoders"])
