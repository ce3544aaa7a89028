import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from PIL import Image

from acestep_gguf.bundle.names import Ftype, VisionPrecision
from acestep_gguf.bundle.schema import Bundle, check_file
from acestep_gguf.convert import convert_checkpoint, plan_conversion
from acestep_gguf.engine.engine import AceStep
from acestep_gguf.errors import (
    AceStepError,
    BundleError,
    CheckpointError,
    ImageError,
    SourceLostError,
    UnsupportedModelError,
    UsageError,
)
from acestep_gguf.llama.binding import Model
from acestep_gguf.quantize.conversion_events import Event, FileDone, Finished, Planned, Progress
from acestep_gguf.quantize.steering import parse_steering
from tests.support.tiny_checkpoints import Dtype, Layout, TinyCheckpoint, write_safetensors
from tests.support.tiny_families import DECODERS
from tests.support.tiny_tokenizer import n_tokens, token_id

GOLDEN = Path(__file__).parent / "golden" / "tiny_bundle.json"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def manifest(folder: Path) -> dict[str, Any]:
    """What a bundle holds, file by file: values (long ones as hashes), types and hashes of tensors."""
    bundle = json.loads((folder / "bundle.json").read_text())
    files = {}
    for path in sorted(folder.glob("*.gguf")):
        reader = GGUFReader(path)
        # Fused multiply-adds change how ggml rounds the scales of K-quants, so their bytes differ between
        # CPUs: here only their types count, test_one_pass.py compares their bytes with llama.cpp's.
        files[path.name] = {
            "keys": {key: short(field.contents()) for key, field in reader.fields.items()},
            "tensors": {
                tensor.name: [tensor.tensor_type.name, tensor.shape.tolist()]
                + ([] if "_K" in tensor.tensor_type.name else [sha256(np.asarray(tensor.data).tobytes())])
                for tensor in reader.tensors
            },
        }
    for decoder in bundle["decoders"]["files"].values():
        del decoder["sha256"]
    # The graph's bytes depend on onnx's version, its weights do not; those of int8 on what a CPU rounds.
    del bundle["vision"]["files"]["float32"]["bytes"], bundle["vision"]["files"]["float32"]["sha256"]
    bundle["vision"]["files"]["int8"] = sorted(bundle["vision"]["files"]["int8"])
    return {"bundle": bundle, "files": files}


def short(value: Any) -> Any:
    return sha256(json.dumps(value).encode()) if isinstance(value, list) else value


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that no test changes."""
    folder = tmp_path_factory.mktemp("shared")
    checkpoint = TinyCheckpoint(yarn=True).write(folder / "checkpoint")
    convert_checkpoint(checkpoint, folder / "bundle", name="Tiny")
    return folder / "bundle"


def test_golden_manifest(bundle_folder: Path) -> None:
    """After an intended change: ``UPDATE_GOLDEN=1 pytest tests/convert``, and read the diff."""
    got = manifest(bundle_folder)
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(got, indent=1, ensure_ascii=False) + "\n")
    assert got == json.loads(GOLDEN.read_text())


def test_bundle_records_what_is_there(bundle_folder: Path) -> None:
    bundle = Bundle.read(bundle_folder)
    for record in bundle.records():
        assert sha256(check_file(bundle_folder, record).read_bytes()) == record.sha256
    assert {path.name for path in bundle_folder.iterdir()} == {
        "bundle.json",
        *(record.file for record in bundle.records()),
    }
    assert bundle.decoders.default == "Q4_K_M"
    assert list(bundle.decoders.files) == ["Q4_K_M", "Q5_K_M", "Q8_0"]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["v4", "v4.52", "v5"])
@pytest.mark.parametrize("n_shards", [1, 3])
def test_every_layout_gives_the_same_files(tmp_path: Path, layout: Layout, n_shards: int) -> None:
    def hashes(**options: Any) -> list[str]:
        folder = tmp_path / "-".join(map(str, options.values()))
        bundle = convert_checkpoint(
            TinyCheckpoint(chat_template_in="chat_template.jinja", **options).write(folder / "checkpoint"),
            folder / "bundle",
            ["Q8_0"],
            name="Tiny",
        )
        return [bundle.decoder().sha256, bundle.tower()[0].files["float32"].data.sha256]

    # Each layout draws the same weights in the same order.
    assert hashes(layout=layout, n_shards=n_shards) == hashes(layout="v4")


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_every_dtype_is_stored_exactly(tmp_path: Path, dtype: Dtype) -> None:
    tiny = TinyCheckpoint(dtype=dtype)
    bundle = convert_checkpoint(tiny.write(tmp_path / "checkpoint"), tmp_path / "bundle", ["F32"])
    tensors = {
        tensor.name: tensor for tensor in GGUFReader(tmp_path / "bundle" / bundle.decoder().file).tensors
    }
    weights = tiny.tensors()["language_model.model.layers.0.mlp.down_proj.weight"]
    tolerance = {"BF16": 2**-8, "F16": 2**-10, "F32": 0.0}[dtype]
    np.testing.assert_allclose(tensors["blk.0.ffn_down.weight"].data, weights, rtol=tolerance, atol=1e-6)
    assert dtype != "F32" or tensors["blk.0.ffn_down.weight"].data.tobytes() == weights.tobytes()


@pytest.mark.parametrize("ftype", ["Q4_K_M", "Q5_K_M", "Q8_0", "F16", "BF16", "F32"])
def test_llama_cpp_loads_it(tmp_path: Path, ftype: Ftype) -> None:
    tiny = TinyCheckpoint(yarn=True, tied=True, layout="v5")
    bundle = convert_checkpoint(tiny.write(tmp_path / "checkpoint"), tmp_path / "bundle", [ftype])
    model = Model(tmp_path / "bundle" / bundle.decoder().file)
    assert model.n_vocab == tiny.vocab_size
    assert model.n_embd == 256
    model.close()


def test_missing_decoders_are_added_and_the_rest_is_kept(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint().write(tmp_path / "checkpoint")
    first = convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q8_0"])
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "bundle").iterdir()}
    second = convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q4_K_M", "Q8_0"])
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "bundle").iterdir()}
    assert [name for name in before if after[name] != before[name]] == ["bundle.json"]
    assert second.decoders.default == "Q8_0"
    assert list(second.decoders.files) == ["Q4_K_M", "Q8_0"]
    assert second.decoders.files["Q8_0"] == first.decoders.files["Q8_0"]
    assert Bundle.read(tmp_path / "bundle") == second


def test_nothing_is_done_twice(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint().write(tmp_path / "checkpoint")
    convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q8_0"])
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "bundle").iterdir()}
    events: list[Event] = []
    convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q8_0"], on_event=events.append)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "bundle").iterdir()} == before
    plan, finished = events
    assert isinstance(plan, Planned)
    assert (plan.files, plan.bytes_needed) == ((), 0)
    assert isinstance(finished, Finished)


@pytest.mark.slow
@pytest.mark.parametrize(
    "suffix", [".gguf", "float32.onnx", "float32.onnx.data", "int8.onnx", "int8.onnx.data"]
)
@pytest.mark.parametrize("is_missing", [True, False])
def test_files_that_are_damaged_are_made_again(tmp_path: Path, suffix: str, is_missing: bool) -> None:
    checkpoint = TinyCheckpoint().write(tmp_path / "checkpoint")
    convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q8_0"])
    before = contents(tmp_path / "bundle")
    (path,) = (path for path in (tmp_path / "bundle").iterdir() if path.name.endswith(suffix))
    if is_missing:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q8_0"])
    assert contents(tmp_path / "bundle") == before


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"tied": True}, {"layout": "v5"}, {"chat_template_in": "tokenizer_config.json"}]
)
def test_bundle_of_another_checkpoint_is_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    convert_checkpoint(TinyCheckpoint().write(tmp_path / "one"), tmp_path / "bundle", ["Q8_0"], name="Tiny")
    before = contents(tmp_path / "bundle")
    checkpoint = TinyCheckpoint(**other).write(tmp_path / "other")
    if other.get("chat_template_in"):
        config = json.loads((checkpoint / "tokenizer_config.json").read_text())
        (checkpoint / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "another"}))
    with pytest.raises(BundleError, match="was made from another checkpoint"):
        convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q4_K_M"], name="Tiny")
    assert contents(tmp_path / "bundle") == before


@pytest.mark.parametrize("options", [{"ftypes": ["Q4_K_M"]}, {"ftypes": ["Q8_0"], "mmproj": ["F16"]}])
@pytest.mark.parametrize("tensor", ["model.layers.1.mlp.up_proj.weight", "layers.2.mlp.fc2.weight"])
def test_bundle_of_another_training_of_the_checkpoint_is_refused(
    tmp_path: Path, tensor: str, options: dict[str, Any]
) -> None:
    """One weight differs, be it needed or not, and not among the first of its tensor."""
    tiny = TinyCheckpoint(dtype="F32")
    checkpoint = tiny.write(tmp_path / "checkpoint")
    convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q8_0"], vision=["float32"])
    before = contents(tmp_path / "bundle")
    weights = tiny.tensors()
    (name,) = (name for name in weights if name.endswith(tensor))
    weights[name][-1, -1] += 1
    write_safetensors(checkpoint / "model.safetensors", weights, "F32")
    plan_conversion(checkpoint, tmp_path / "bundle", vision=["float32"], **options)  # reads a sample only
    with pytest.raises(BundleError, match="was made from another training of this checkpoint"):
        convert_checkpoint(checkpoint, tmp_path / "bundle", vision=["float32"], **options)
    assert contents(tmp_path / "bundle") == before


def test_the_same_weights_in_other_files_are_the_same_checkpoint(tmp_path: Path) -> None:
    convert_checkpoint(TinyCheckpoint().write(tmp_path / "one"), tmp_path / "bundle", ["Q8_0"])
    shards = TinyCheckpoint(n_shards=3).write(tmp_path / "shards")
    added = convert_checkpoint(shards, tmp_path / "bundle", ["Q4_K_M"])
    assert list(added.decoders.files) == ["Q4_K_M", "Q8_0"]


def test_a_bundle_that_does_not_say_which_training_it_is_from_is_used_but_not_added_to(
    tmp_path: Path,
) -> None:
    checkpoint = TinyCheckpoint(has_tower=False).write(tmp_path / "checkpoint")
    convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q8_0"])
    path = tmp_path / "bundle" / "bundle.json"
    raw = json.loads(path.read_text())
    del raw["source"]["tensors_sha256"]
    path.write_text(json.dumps(raw))
    old = contents(tmp_path / "bundle")
    with AceStep(tmp_path / "bundle", n_threads=1, n_ctx=256) as model:
        model.generate("Hello", max_tokens=2)
    assert convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q8_0"]) == Bundle.read(tmp_path / "bundle")
    for work in (plan_conversion, convert_checkpoint):
        with pytest.raises(BundleError, match="it can be used, but not added to"):
            work(checkpoint, tmp_path / "bundle", ["Q4_K_M"])
    assert contents(tmp_path / "bundle") == old


def test_weights_that_change_while_they_are_converted_are_read_again(tmp_path: Path) -> None:
    tiny = TinyCheckpoint(dtype="F32")
    checkpoint, out = tiny.write(tmp_path / "checkpoint"), tmp_path / "bundle"
    weights = tiny.tensors()
    weights["language_model.lm_head.weight"][-1, -1] += 1
    write_safetensors(tmp_path / "changed", weights, "F32")

    def train(event: Event) -> None:
        if isinstance(event, Progress) and event.bytes_written == event.bytes_total:
            (checkpoint / "model.safetensors").write_bytes((tmp_path / "changed").read_bytes())

    with pytest.raises(SourceLostError, match="was changed while it was read: give the command again"):
        convert_checkpoint(checkpoint, out, ["Q8_0"], name="Tiny", on_event=train)
    assert not (out / "bundle.json").exists()
    convert_checkpoint(checkpoint, out, ["Q8_0"], name="Tiny")
    convert_checkpoint(checkpoint, tmp_path / "expected", ["Q8_0"], name="Tiny")
    assert contents(out) == contents(tmp_path / "expected")


def test_bundle_for_another_picture_size_is_refused(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint().write(tmp_path / "checkpoint")
    convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q8_0"])
    with pytest.raises(BundleError, match="pictures of 28 pixels, not 56"):
        convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q8_0"], image_size=56)


def test_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint().write(tmp_path / "checkpoint")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "diary.txt").write_text("dear diary")
    with pytest.raises(BundleError, match=r"is not a bundle, but holds diary\.txt"):
        convert_checkpoint(checkpoint, tmp_path / "out")
    with pytest.raises(BundleError, match="is not a bundle, but holds"):
        convert_checkpoint(checkpoint, checkpoint)
    with pytest.raises(BundleError, match="is not a folder"):
        convert_checkpoint(checkpoint, tmp_path / "out" / "diary.txt")


def test_leftovers_of_a_killed_conversion_are_written_over(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint().write(tmp_path / "checkpoint")
    expected = convert_checkpoint(checkpoint, tmp_path / "expected", ["Q8_0"])
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / f".{expected.decoder().file}.partial").write_bytes(b"half")
    (tmp_path / "bundle" / "vision-float32.onnx").write_bytes(b"whole, but from before")
    convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q8_0"])
    assert contents(tmp_path / "bundle") == contents(tmp_path / "expected")


def test_damaged_decoder_is_made_again_even_if_another_is_asked_for(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint().write(tmp_path / "checkpoint")
    bundle = convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q4_K_M"])
    (tmp_path / "bundle" / bundle.decoder().file).unlink()
    again = convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q8_0"])
    assert again.decoders.default == "Q4_K_M"
    assert again.decoder() == bundle.decoder()


def test_name_goes_into_file_names_and_metadata(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint().write(tmp_path / "My Checkpoint")
    bundle = convert_checkpoint(checkpoint, tmp_path / "a", ["Q8_0"])
    assert bundle.decoder().file == "My-Checkpoint-1.4M-Q8_0.gguf"
    named = convert_checkpoint(checkpoint, tmp_path / "b", ["Q8_0"], name="Tiny")
    assert named.decoder().file == "Tiny-1.4M-Q8_0.gguf"
    reader = GGUFReader(tmp_path / "b" / named.decoder().file)
    assert reader.fields["general.name"].contents() == "Tiny"
    with pytest.raises(BundleError, match="is named Tiny"):
        convert_checkpoint(checkpoint, tmp_path / "b", ["Q4_K_M"], name="Other")
    # Without a name, what is there keeps its own.
    assert convert_checkpoint(checkpoint, tmp_path / "b", ["F16"]).decoder("F16").file == "Tiny-1.4M-F16.gguf"


@pytest.mark.parametrize("name", ["x" * 300, "\udcff", os.fsdecode(b"Tiny\xff"), "Tiny\x1b[2J", "a\nb"])
def test_names_that_no_file_should_have_are_refused(tmp_path: Path, name: str) -> None:
    checkpoint = TinyCheckpoint().write(tmp_path / "checkpoint")
    with pytest.raises(UsageError, match="is not a printable text of at most 200 characters") as raised:
        convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q8_0"], name=name)
    assert len(str(raised.value)) < 200
    assert not (tmp_path / "bundle").exists()


def test_the_longest_name_fits_into_a_file_name(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint().write(tmp_path / "checkpoint")
    bundle = convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q4_K_M"], name="x" * 200)
    assert Bundle.read(tmp_path / "bundle") == bundle


def test_a_folder_whose_name_is_not_utf8_needs_a_name(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint().write(tmp_path / os.fsdecode(b"Tiny\xff"))
    with pytest.raises(UsageError, match="give another name"):
        convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q8_0"])
    assert convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q8_0"], name="Tiny").name == "Tiny"


@pytest.mark.parametrize("out", ["x" * 300, "x/" * 2500])
def test_output_folders_that_cannot_be_are_refused(tmp_path: Path, out: str) -> None:
    checkpoint = TinyCheckpoint().write(tmp_path / "checkpoint")
    with pytest.raises(UsageError, match=r"cannot be used \(File name too long\): give another one"):
        convert_checkpoint(checkpoint, tmp_path / out)


def add_to_vocabulary(checkpoint: Path, token: str) -> int:
    """Add ``token``, but not to the added tokens, and return its id."""
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"][token] = n_tokens()
    (checkpoint / "tokenizer.json").write_text(json.dumps(tokenizer))
    return n_tokens()


@pytest.mark.parametrize("eos_token", ["<tool_call>", "<|end|>"])
def test_an_eos_token_that_is_not_special_still_makes_a_bundle_that_runs(
    tmp_path: Path, eos_token: str
) -> None:
    checkpoint = TinyCheckpoint().write(tmp_path / "checkpoint")
    eos_id = token_id("<tool_call>")
    if eos_token == "<|end|>":
        eos_id = add_to_vocabulary(checkpoint, eos_token)
    config = json.loads((checkpoint / "tokenizer_config.json").read_text())
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": eos_token}))
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": eos_id}))
    bundle = convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q8_0"])
    assert bundle.prompt.stop_tokens == (eos_token,)
    with AceStep(tmp_path / "bundle", n_threads=1, n_ctx=256) as model:
        assert model.generate(f"Is {eos_token} a word?", max_tokens=2).finish_reason in ("stop", "length")


def test_what_the_runtime_would_refuse_is_not_written(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint().write(tmp_path / "checkpoint")
    add_to_vocabulary(checkpoint, "")
    with pytest.raises(CheckpointError, match=r"cannot be run \(a token is empty\): get the file, or the ch"):
        convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q8_0"])
    assert not (tmp_path / "bundle").exists()


def test_a_chat_template_that_is_not_valid_is_refused(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint(chat_template_in="chat_template.jinja").write(tmp_path / "checkpoint")
    (checkpoint / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(CheckpointError, match="the chat template is not valid"):
        convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q8_0"])
    assert not (tmp_path / "bundle").exists()


def test_rows_that_do_not_fit_are_counted(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint(intermediate_size=352).write(tmp_path / "c")
    plan = plan_conversion(checkpoint, tmp_path / "bundle", ["Q4_K_M", "Q8_0"])
    assert [file.fallbacks for file in plan.files[:2]] == [{"Q6_K -> Q8_0": 1, "Q4_K -> Q5_0": 1}, {}]


@pytest.mark.parametrize("ftypes", [[], ["TQ1_0"], ["q8_0"]])
def test_file_types_that_do_not_exist_are_refused(tmp_path: Path, ftypes: list[Any]) -> None:
    with pytest.raises(UsageError, match="Q4_K_M, Q4_1"):
        convert_checkpoint(TinyCheckpoint().write(tmp_path / "c"), tmp_path / "bundle", ftypes)


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("config.json", None, CheckpointError),
        ("config.json", "{", CheckpointError),
        ("config.json", '{"model_type": "qwen2_5_vl"}', UnsupportedModelError),
        ("tokenizer.json", None, CheckpointError),
        ("tokenizer.json", "[]", CheckpointError),
        ("preprocessor_config.json", None, CheckpointError),
        ("chat_template.json", None, CheckpointError),
        ("generation_config.json", "null", CheckpointError),
        ("model.safetensors", None, CheckpointError),
        ("model.safetensors", "\x08\0\0\0\0\0\0\0{}      ", CheckpointError),
        ("model.safetensors", "", CheckpointError),
    ],
)
def test_an_unusable_checkpoint_leaves_nothing_behind(
    tmp_path: Path, name: str, content: str | None, error: type[AceStepError]
) -> None:
    checkpoint = TinyCheckpoint().write(tmp_path / "checkpoint")
    (checkpoint / name).unlink()
    if content is not None:
        (checkpoint / name).write_text(content)
    with pytest.raises(error) as raised:
        convert_checkpoint(checkpoint, tmp_path / "new" / "bundle")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "new").exists()


def test_damage_found_on_the_way_leaves_the_bundle_as_it_was(tmp_path: Path) -> None:
    tiny = TinyCheckpoint(dtype="F32")
    checkpoint = tiny.write(tmp_path / "checkpoint")
    convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q8_0"])
    before = contents(tmp_path / "bundle")
    weights = tiny.tensors()
    weights["language_model.model.layers.1.mlp.down_proj.weight"][200, 200] = np.nan
    write_safetensors(checkpoint / "model.safetensors", weights, "F32")
    with pytest.raises(CheckpointError, match=r"down_proj\.weight has NaN"):
        convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q4_K_M"])
    assert contents(tmp_path / "bundle") == before


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["v4", "v5"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tied": True},
        {"yarn": True, "n_shards": 2},
        {"decoder": "qwen3", "tied": True},
        {"decoder": "mistral"},
    ],
)
def test_a_decoder_alone_becomes_a_bundle_without_a_tower(
    tmp_path: Path, layout: Layout, options: dict[str, Any]
) -> None:
    """Its decoder is, to the bit, the one that it is behind a tower."""
    bundles = [
        convert_checkpoint(
            TinyCheckpoint(layout=layout, has_tower=has_tower, **options).write(tmp_path / f"c{has_tower}"),
            tmp_path / str(has_tower),
            ["Q4_K_M"],
            name="Tiny",
        )
        for has_tower in (False, True)
    ]
    alone, behind = bundles
    assert (alone.vision, alone.image, alone.prompt.image_token) == (None, None, None)
    architecture = DECODERS[options.get("decoder", "qwen2")].architecture
    assert (alone.source.architecture, alone.source.vision_model_type) == (architecture, None)
    assert alone.decoder() == behind.decoder()
    raw = json.loads((tmp_path / "False" / "bundle.json").read_text())
    assert (raw["vision"], raw["image"], raw["prompt"]["image_token"]) == (None, None, None)
    added = convert_checkpoint(tmp_path / "cFalse", tmp_path / "False", ["Q8_0"])
    assert list(added.decoders.files) == ["Q4_K_M", "Q8_0"]
    assert {path.name for path in (tmp_path / "False").iterdir()} == {
        "bundle.json",
        *(record.file for record in added.records()),
    }


def test_a_decoder_alone_has_no_picture_size_and_no_tower(tmp_path: Path) -> None:
    tiny = TinyCheckpoint(has_tower=False, dtype="F32")
    checkpoint = tiny.write(tmp_path / "checkpoint")
    with pytest.raises(UsageError, match="has no vision tower: leave the image size out"):
        convert_checkpoint(checkpoint, tmp_path / "bundle", image_size=56)
    weights = {**tiny.tensors(), "vision_tower.post_layernorm.bias": np.zeros(64, np.float32)}
    write_safetensors(checkpoint / "model.safetensors", weights, "F32")
    with pytest.raises(CheckpointError, match=r"'vision_tower\.post_layernorm\.bias' is unknown"):
        convert_checkpoint(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_plan_says_what_will_be_there(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint().write(tmp_path / "checkpoint")
    plan = plan_conversion(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    events: list[Event] = []
    convert_checkpoint(checkpoint, tmp_path / "bundle", on_event=events.append)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "bundle").iterdir()}
    del sizes["bundle.json"]
    planned = {file.file: file.bytes for file in plan.files}
    assert plan.bytes_needed == sum(planned.values())
    assert planned.keys() == sizes.keys()
    for file, n_bytes in planned.items():
        # Calibration shows how much of the int8 tower stays in float32: the plan has the most that it can be.
        assert n_bytes >= sizes[file] if "int8" in file else n_bytes == sizes[file]
    assert plan.files[0].types == {"Q4_K": 13, "F32": 11, "Q6_K": 3}
    assert {event.file: event.bytes for event in events if isinstance(event, FileDone)} == sizes

    last = [event for event in events if isinstance(event, Progress)][-1]
    assert last.bytes_written == last.bytes_total == plan.bytes_needed
    n_tower_weights = sum(count for file in plan.files[3:] for count in file.types.values())
    assert last.tensors_written == last.tensors_total == 3 * 27 + n_tower_weights
    assert plan_conversion(checkpoint, tmp_path / "bundle").files == ()


def test_a_new_decoder_may_be_steered_an_old_one_may_not(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint().write(tmp_path / "checkpoint")
    steering = parse_steering(["ffn_up=Q8_0"])
    convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q4_K_M"])
    with pytest.raises(UsageError, match="has Q4_K_M already, which options do not change"):
        convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q4_K_M", "Q5_K_M"], steering=steering)
    plan = plan_conversion(checkpoint, tmp_path / "bundle", ["Q5_K_M"], steering=steering)
    assert plan.files[0].types["Q8_0"] == 2


@pytest.mark.parametrize("threads", [0, -1, 100_000])
def test_a_number_of_threads_that_makes_no_sense_is_refused(tmp_path: Path, threads: int) -> None:
    with pytest.raises(UsageError, match="give 1 to 1024"):
        convert_checkpoint(TinyCheckpoint().write(tmp_path / "c"), tmp_path / "bundle", threads=threads)


def test_int8_is_the_default_and_float32_is_there(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint().write(tmp_path / "checkpoint")
    vision, _ = convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q8_0"]).tower()
    assert (vision.default, list(vision.files)) == ("int8", ["float32", "int8"])
    assert vision.files["int8"].data.bytes < 0.9 * vision.files["float32"].data.bytes
    assert vision.files["float32"].reference is None
    assert vision.files["int8"].reference is not None


@pytest.mark.parametrize(("first", "then"), [("float32", "int8"), ("int8", "float32")])
def test_a_tower_is_added_to_a_bundle_that_lacks_it(
    tmp_path: Path, first: VisionPrecision, then: VisionPrecision
) -> None:
    """And is the one that it would have been."""
    checkpoint = TinyCheckpoint().write(tmp_path / "checkpoint")
    alone, _ = convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q8_0"], vision=[first]).tower()
    assert (alone.default, list(alone.files)) == (first, [first])
    assert not (tmp_path / "bundle" / f"vision-{then}.onnx").exists()
    kept = plan_conversion(checkpoint, tmp_path / "bundle", ["Q4_K_M"])
    assert [file.label for file in kept.files] == ["Q4_K_M"]  # nobody asked for the other tower
    plan = plan_conversion(checkpoint, tmp_path / "bundle", ["Q8_0"], vision=[then])
    assert [file.file for file in plan.files] == [f"vision-{then}.onnx.data", f"vision-{then}.onnx"]
    convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q8_0"], vision=[then])
    convert_checkpoint(checkpoint, tmp_path / "both", ["Q8_0"])
    assert contents(tmp_path / "bundle") == contents(tmp_path / "both")


@pytest.mark.parametrize("vision", [[], ["int4"], ["float32", "fp16"]])
def test_precisions_that_do_not_exist_are_refused(tmp_path: Path, vision: list[Any]) -> None:
    with pytest.raises(UsageError, match="choose from float32, int8"):
        convert_checkpoint(TinyCheckpoint().write(tmp_path / "c"), tmp_path / "bundle", vision=vision)
    assert not (tmp_path / "bundle").exists()


def test_a_tower_is_calibrated_on_the_pictures_given(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint().write(tmp_path / "checkpoint")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"broken\.png"):
        convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q8_0"], calibration=pictures)
    assert not (tmp_path / "bundle").exists()
    Image.new("RGB", (40, 30), "white").save(pictures / "broken.png")
    white, ours = (
        convert_checkpoint(checkpoint, tmp_path / name, ["Q8_0"], name="Tiny", calibration=folder)
        for name, folder in (("white", pictures), ("ours", None))
    )
    assert white.vision_file("int8").cosine_to_float32 != ours.vision_file("int8").cosine_to_float32
    with pytest.raises(UsageError, match="ours gets no int8 tower now, so calibration changes nothing"):
        convert_checkpoint(checkpoint, tmp_path / "ours", ["Q4_K_M"], calibration=tmp_path / "missing")


@pytest.mark.parametrize(
    ("tiny", "options"),
    [
        (TinyCheckpoint(), {"vision": ["float32"]}),
        (TinyCheckpoint(has_tower=False), {}),
    ],
)
def test_calibration_without_an_int8_tower_is_refused(
    tmp_path: Path, tiny: TinyCheckpoint, options: dict[str, Any]
) -> None:
    checkpoint = tiny.write(tmp_path / "checkpoint")
    with pytest.raises(UsageError, match="bundle gets no int8 tower now, so calibration changes nothing"):
        convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q8_0"], calibration=tmp_path, **options)


def test_a_tower_that_int8_ruins_stays_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acestep_gguf.convert.tower.files.GOOD_COSINE", 0.9999999)
    checkpoint = TinyCheckpoint().write(tmp_path / "checkpoint")
    assert convert_checkpoint(checkpoint, tmp_path / "both", ["Q8_0"]).tower()[0].default == "float32"
    only = convert_checkpoint(checkpoint, tmp_path / "only", ["Q8_0"], vision=["int8"])
    assert only.tower()[0].default == "int8"
