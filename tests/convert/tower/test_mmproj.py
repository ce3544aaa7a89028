"""Our mmproj files in llama.cpp itself: libmtmd of llama-cpp-python, next to the ONNX tower."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from acestep_gguf.bundle.gguf_header import parse_gguf_header
from acestep_gguf.bundle.names import MmprojFtype
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.convert.model import open_model
from acestep_gguf.convert.tower.mmproj import plan_mmproj
from acestep_gguf.errors import UnsupportedModelError, UsageError
from acestep_gguf.quantize.gguf_source import GgufFile
from acestep_gguf.vision.encoder import ImageEncoder
from acestep_gguf.vision.image import pixel_values
from scripts.checks.libmtmd import LlamaCppPair
from tests.support.fidelity import drawing
from tests.support.tiny_checkpoints import TinyCheckpoint
from tests.support.tiny_internvl import TinyInternVL
from tests.support.tiny_pixtral import ROW_END, TinyPixtral
from tests.support.tiny_smolvlm import TinySmolVLM

SIGLIP = {"tower": "siglip", "activation": "gelu_pytorch_tanh", "strategy": "full", "feature_layer": -1}
GOOD_COSINE = 0.999


def convert(
    folder: Path,
    mmproj: MmprojFtype,
    converted_size: int | None = None,
    class_token_first: bool = False,
    **options: Any,
) -> tuple[Bundle, Path]:
    """A bundle with a float32 tower and an mmproj file."""
    checkpoint = TinyCheckpoint(**options).write(folder / "checkpoint")
    out = folder / "bundle"
    bundle = convert_checkpoint(
        checkpoint,
        out,
        ["F32"],
        image_size=converted_size,
        vision=["float32"],
        mmproj=[mmproj],
        class_token_first=class_token_first,
        name="Tiny",
    )
    return bundle, out


def our_embeds(bundle: Bundle, folder: Path, image: Image.Image) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(str(folder / bundle.vision_file("float32").file))
    _, spec = bundle.tower()
    (embeds,) = session.run(["image_embeds"], {"pixel_values": pixel_values(image, spec)[0]})
    return np.asarray(embeds[0])


def llama_cpp_embeds(
    bundle: Bundle, folder: Path, image: Image.Image, *, class_token_first: bool
) -> NDArray[np.float32]:
    decoder, (mmproj,) = bundle.decoder("F32"), bundle.mmproj.values()
    with LlamaCppPair(
        folder / decoder.file, folder / mmproj.file, class_token_first=class_token_first
    ) as pair:
        return pair.image_embeds(image)


def cosines(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.asarray((one * other).sum(axis=1) / norms)


def square(bundle: Bundle, seed: int = 0) -> Image.Image:
    """A picture of the tower's size: nobody resizes it."""
    _, image = bundle.tower()
    return drawing((image.size.width, image.size.height), seed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mmproj", "converted_size", "options"),
    [
        ("F32", None, {"image_size": 56}),
        ("F16", None, {"image_size": 56}),
        ("Q8_0", None, {"image_size": 56}),
        ("F16", None, {"activation": "quick_gelu"}),
        ("F16", None, {"feature_layer": -1}),
        ("F16", None, {"feature_layer": 0}),
        ("F16", None, {"feature_layer": (3, 1, 3)}),
        ("F16", None, {"projector_bias": False, "decoder": "llama"}),
        ("F16", 84, {"image_size": 56}),
        ("F32", None, {**SIGLIP, "image_size": 48}),
        ("F16", None, {**SIGLIP, "image_size": 48, "activation": "gelu"}),
        ("Q8_0", 84, {**SIGLIP, "image_size": 56, "feature_layer": (-2, -1)}),
    ],
    ids=str,
)
def test_llama_cpp_gives_our_image_embeds(
    tmp_path: Path, mmproj: MmprojFtype, converted_size: int | None, options: dict[str, Any]
) -> None:
    has_class_token = "tower" not in options
    bundle, folder = convert(tmp_path, mmproj, converted_size, class_token_first=True, **options)
    image = square(bundle)
    theirs = llama_cpp_embeds(bundle, folder, image, class_token_first=has_class_token)
    assert cosines(theirs, our_embeds(bundle, folder, image)).min() > GOOD_COSINE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mmproj", "converted_size", "options"),
    [
        ("F32", None, {"has_biases": True, "vision_n_layers": 5}),
        ("F16", 84, {"has_biases": True}),
        ("Q8_0", None, {"feature_layer": -2, "is_original": True}),
    ],
    ids=str,
)
def test_llama_cpp_gives_our_image_embeds_of_internvl(
    tmp_path: Path, mmproj: MmprojFtype, converted_size: int | None, options: dict[str, Any]
) -> None:
    checkpoint = TinyInternVL(**options).write(tmp_path / "checkpoint")
    folder = tmp_path / "bundle"
    bundle = convert_checkpoint(
        checkpoint, folder, ["F32"], image_size=converted_size, vision=["float32"], mmproj=[mmproj]
    )
    image = square(bundle)  # one tile here and there
    theirs = llama_cpp_embeds(bundle, folder, image, class_token_first=False)
    assert cosines(theirs, our_embeds(bundle, folder, image)).min() > GOOD_COSINE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mmproj", "options"),
    [("F32", {}), ("Q8_0", {"image_size": 54, "patch_size": 2, "scale_factor": 3, "longest_edge": 216})],
    ids=str,
)
def test_llama_cpp_gives_our_tiles_of_smolvlm(
    tmp_path: Path, mmproj: MmprojFtype, options: dict[str, Any]
) -> None:
    checkpoint = TinySmolVLM(decoder="smollm", **options).write(tmp_path / "checkpoint")
    folder = tmp_path / "bundle"
    bundle = convert_checkpoint(checkpoint, folder, ["F32"], vision=["float32"], mmproj=[mmproj])
    picture = drawing((90, 61), 0)  # resized in three steps, here and there
    session = onnxruntime.InferenceSession(str(folder / bundle.vision_file("float32").file))
    pixels = pixel_values(picture, bundle.tower()[1])
    ours = [session.run(["image_embeds"], {"pixel_values": crop})[0][0] for crop in pixels]
    decoder, file = folder / bundle.decoder("F32").file, folder / bundle.mmproj[mmproj].file
    with LlamaCppPair(decoder, file) as pair:
        parts = pair.parts(picture)
    assert len(parts) == len(ours) == 13
    for theirs, embeds in zip(parts, ours, strict=True):
        assert cosines(theirs, embeds).min() > GOOD_COSINE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mmproj", "activation"), [("F32", "silu"), ("F16", "gelu"), ("Q8_0", "gelu_pytorch_tanh")]
)
def test_llama_cpp_gives_our_rows_of_pixtral(tmp_path: Path, mmproj: MmprojFtype, activation: str) -> None:
    tiny = TinyPixtral(decoder="tekken", activation=activation, vision_n_layers=5)
    folder = tmp_path / "bundle"
    bundle = convert_checkpoint(
        tiny.write(tmp_path / "checkpoint"), folder, ["F32"], vision=["float32"], mmproj=[mmproj]
    )
    picture = drawing((56, 24), 0)  # 7 x 3 patches, which nobody resizes
    encoder = ImageEncoder(folder, bundle, n_threads=1)
    ours = encoder.encode(encoder.prepare(picture)).embeds
    theirs = llama_cpp_embeds(bundle, folder, picture, class_token_first=False)
    assert len(ours) == 3 * (7 + 1) - 1
    # Its queries and keys are large, so what Q8_0 rounds matters.
    assert cosines(theirs, ours).min() > (0.99 if mmproj == "Q8_0" else GOOD_COSINE)
    row_end = tiny.tensors()["language_model.model.embed_tokens.weight"][
        bundle.prompt.control_tokens[ROW_END]
    ]
    assert np.allclose(theirs[7], row_end, atol=1e-2)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"vision_rope_theta": 100.0}, "rotates by a rope_theta of 10,000 in such a tower"),
        ({"activation": "relu"}, "relu"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_of_pixtral_is_refused(
    tmp_path: Path, options: dict[str, Any], problem: str
) -> None:
    checkpoint = TinyPixtral(decoder="mistral", **options).write(tmp_path / "c")
    with pytest.raises(UnsupportedModelError, match=problem):
        convert_checkpoint(checkpoint, tmp_path / "b", ["Q8_0"], mmproj=["F16"])


@pytest.mark.parametrize("converted_size", [None, 84])
def test_llama_cpp_as_it_is_drops_the_first_patch_of_clip_only(
    tmp_path: Path, converted_size: int | None
) -> None:
    """When this fails, llama.cpp #25814 is fixed: make class_token_first the default, and tell it in docs."""
    bundle, folder = convert(tmp_path, "F16", converted_size, image_size=56)
    image = square(bundle)
    ours = our_embeds(bundle, folder, image)
    theirs = llama_cpp_embeds(bundle, folder, image, class_token_first=False)
    assert cosines(theirs[:-1], ours[1:]).min() > GOOD_COSINE
    assert cosines(theirs, ours).min() < GOOD_COSINE


def test_tensors_and_keys_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    bundle, folder = convert(tmp_path, "F16")
    record = bundle.mmproj["F16"]
    assert record.file == "mmproj-Tiny-F16.gguf"
    tiny = TinyCheckpoint()
    weights = tiny.tensors()
    with GgufFile(folder / record.file) as file:
        found = {info.name: file.tensor(info, max_dims=4) for info in file.header.tensors}
        expected = weights["vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight"]
        assert np.allclose(found["v.blk.1.ffn_up.weight"].read(), expected, atol=2e-2)
        # The last layer is behind the one whose features the projector takes.
        assert "v.blk.1.ln1.bias" in found
        assert "v.blk.2.ln1.bias" not in found
        assert {name for name in found if name.startswith("mm.")} == {
            "mm.0.weight",
            "mm.0.bias",
            "mm.2.weight",
            "mm.2.bias",
        }
        types = {name: tensor.qtype.name for name, tensor in found.items()}
        assert types["v.blk.0.attn_q.weight"] == types["mm.2.weight"] == "F16"
        assert types["v.patch_embd.weight"] == types["v.position_embd.weight"] == "F32"
        metadata = file.header.metadata
        assert metadata["general.architecture"] == "clip"
        assert metadata["clip.projector_type"] == "mlp"
        assert metadata["clip.use_gelu"] is True
        assert metadata["clip.vision.block_count"] == 2
        assert np.asarray(metadata["clip.vision.feature_layer"]).tolist() == [2]
        assert metadata["clip.vision.projection_dim"] == tiny.hidden_size
        assert metadata["general.file_type"] == 1


def test_rows_that_do_not_fill_blocks_stay_float16(tmp_path: Path) -> None:
    bundle, folder = convert(tmp_path, "Q8_0", vision_hidden_size=48)
    with GgufFile(folder / bundle.mmproj["Q8_0"].file) as file:
        types = {info.name: info.type.name for info in file.header.tensors}
    assert types["v.blk.0.attn_q.weight"] == "F16"
    assert types["v.blk.0.ffn_down.weight"] == types["mm.2.weight"] == "Q8_0"


def test_a_bundle_gets_it_later(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint().write(tmp_path / "checkpoint")
    out = tmp_path / "bundle"
    before = convert_checkpoint(checkpoint, out, ["Q8_0"], vision=["float32"])
    times = {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.name != "bundle.json"}
    after = convert_checkpoint(checkpoint, out, ["Q8_0"], vision=["float32"], mmproj=["F16"])
    assert replace(after, mmproj={}) == before
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.name in times} == times
    assert set(after.mmproj) == {"F16"}
    # A file that was lost comes back, also without being asked for.
    (out / after.mmproj["F16"].file).unlink()
    assert convert_checkpoint(checkpoint, out, ["Q8_0"], vision=["float32"]) == after
    assert (out / after.mmproj["F16"].file).stat().st_size == after.mmproj["F16"].bytes


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"strategy": "full"}, "drops the first feature"),
        ({**SIGLIP, "strategy": "default"}, "keeps the first feature"),
        ({"vision_intermediate_size": 64}, "ffn_up and ffn_down for each other"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    tmp_path: Path, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=problem):
        convert(tmp_path, "F16", **options)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"norm_type": "rms_norm"}, "gives a tower of 3 layers of 64 layer norms"),
        ({"has_qk_norm": True}, "normalizes queries and keys as it does before the layers"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_of_internvl_is_refused(
    tmp_path: Path, options: dict[str, Any], problem: str
) -> None:
    checkpoint = TinyInternVL(**options).write(tmp_path / "c")
    with pytest.raises(UnsupportedModelError, match=problem):
        convert_checkpoint(checkpoint, tmp_path / "b", ["Q8_0"], mmproj=["F16"])


def test_tiles_that_llama_cpp_would_not_arrange_are_refused(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint(architecture="llava_next").write(tmp_path / "c")
    with pytest.raises(UnsupportedModelError, match="for LLaVA-NeXT up in a way of its own: convert without"):
        convert_checkpoint(checkpoint, tmp_path / "b", ["Q8_0"], mmproj=["F16"])


def test_other_types_and_decoders_alone_are_refused(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint(has_tower=False).write(tmp_path / "checkpoint")
    with pytest.raises(UsageError, match="choose from F16, Q8_0, F32"):
        convert_checkpoint(checkpoint, tmp_path / "out", mmproj=["Q4_K_M"])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="no vision tower"):
        convert_checkpoint(checkpoint, tmp_path / "out", mmproj=["F16"])


Channels = st.tuples(*[st.floats(0.05, 2)] * 3)


@settings(max_examples=20, deadline=None)
@given(mean=Channels, std=Channels, rescale_factor=st.floats(1e-3, 2))
def test_pixels_are_scaled_as_ours(
    tiny_checkpoint: Path,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    rescale_factor: float,
) -> None:
    with open_model(tiny_checkpoint, None) as model:
        assert model.image is not None
        image = replace(model.image, mean=mean, std=std, rescale_factor=rescale_factor)
        planned = plan_mmproj(model.config, image, model.tensors.tower, name="Tiny", ftype="F32")  # type: ignore[arg-type]
    metadata = parse_gguf_header(planned.layout.header, tiny_checkpoint, planned.layout.n_bytes).metadata
    pixels = np.arange(256)[:, None]
    ours = (pixels * rescale_factor - np.array(mean)) / np.array(std)
    their_mean, their_std = (np.array(metadata[f"clip.vision.image_{key}"]) for key in ("mean", "std"))
    theirs = (pixels / 255 - their_mean) / their_std
    assert np.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(ours).max())
