import json
from pathlib import Path
from typing import Any

import pytest

from acestep_gguf.bundle.image_spec import ImageSpec, Size
from acestep_gguf.convert.checkpoint.config import parse_config
from acestep_gguf.convert.checkpoint.folder import CheckpointFolder
from acestep_gguf.convert.checkpoint.image_processor import read_image_spec
from acestep_gguf.convert.checkpoint.tokenizer import read_tokenizer, read_vocabulary
from acestep_gguf.errors import CheckpointError, UnsupportedModelError, UsageError
from tests.support.tiny_checkpoints import TinyCheckpoint

PUBLISHED = Path(__file__).parents[1] / "published_configs"


def read(folder: Path, image_size: int | None = None) -> ImageSpec:
    checkpoint = CheckpointFolder(folder)
    config = parse_config(checkpoint.config, folder / "config.json")
    vocabulary = read_vocabulary(read_tokenizer(checkpoint), config.text_config.vocab_size, None)
    return read_image_spec(checkpoint, config, vocabulary, image_size)


def changed(folder: Path, name: str = "preprocessor_config.json", **changes: Any) -> Path:
    path = folder / name
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "absent"}))
    return folder


def test_both_versions_say_the_same(tmp_path: Path) -> None:
    spec = read(TinyCheckpoint(image_size=56).write(tmp_path / "v4"))
    assert spec == read(TinyCheckpoint(image_size=56, layout="v5").write(tmp_path / "v5"))
    assert spec == ImageSpec(
        pad_to_square=None,
        resize="shortest_edge",
        resize_to=Size(height=56, width=56),
        resample="bicubic",
        center_crop=Size(height=56, width=56),
        rescale_factor=0.00392156862745098,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
        size=Size(height=56, width=56),
        n_image_tokens=16,
        n_embd=256,
    )


def test_published_feature_extractor_of_llava_1_5(tmp_path: Path) -> None:
    folder = TinyCheckpoint(image_size=336).write(tmp_path / "c")
    published = (PUBLISHED / "llava-1.5-7b-hf.preprocessor_config.json").read_text()
    (folder / "preprocessor_config.json").write_text(published)
    assert read(folder) == read(TinyCheckpoint(image_size=336).write(tmp_path / "other"))


def test_omitted_keys_mean_the_defaults_of_siglip(tmp_path: Path) -> None:
    options: Any = {"tower": "siglip", "image_size": 224, "strategy": "full"}
    folder = TinyCheckpoint(**options).write(tmp_path / "c")
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "SiglipImageProcessorFast"}')
    spec = read(folder)
    assert spec == read(TinyCheckpoint(**options, layout="v5").write(tmp_path / "other"))
    assert (spec.resize, spec.center_crop, spec.mean) == ("exact", None, (0.5, 0.5, 0.5))
    assert spec.n_image_tokens == 16**2


def test_omitted_keys_mean_the_defaults_of_clip(tmp_path: Path) -> None:
    folder = TinyCheckpoint(image_size=224).write(tmp_path / "c")
    (folder / "preprocessor_config.json").write_text("{}")
    assert read(folder) == read(TinyCheckpoint(image_size=224).write(tmp_path / "other"))


def test_llava_processor_pads_with_the_mean(tmp_path: Path) -> None:
    spec = read(TinyCheckpoint(pads_to_square=True).write(tmp_path / "c"))
    assert spec.pad_to_square == (122, 116, 104)
    without_crop = changed(tmp_path / "c", do_center_crop=False)
    assert read(without_crop).center_crop is None


@pytest.mark.parametrize("kind", ["CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil"])
def test_every_backend_of_clip_is_the_same(tiny: Path, kind: str) -> None:
    expected = read(tiny)
    assert read(changed(tiny, image_processor_type=kind)) == expected
    # do_pad means something else, and nothing, to CLIP's processors.
    assert read(changed(tiny, do_pad=True)).pad_to_square is None


def test_flags_that_are_off(tiny: Path) -> None:
    spec = read(
        changed(
            tiny, do_rescale=False, do_normalize=False, do_center_crop=None, size={"height": 28, "width": 28}
        )
    )
    assert (spec.resize, spec.resize_to, spec.center_crop) == ("exact", Size(height=28, width=28), None)
    assert (spec.rescale_factor, spec.mean, spec.std) == (1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    cropped = read(changed(tiny, do_resize=False, do_center_crop=True))
    assert (cropped.resize, cropped.center_crop) == (None, Size(height=28, width=28))


@pytest.mark.parametrize(("number", "name"), list(enumerate(("nearest", "lanczos", "bilinear", "bicubic"))))
def test_resample_numbers_are_pillows(tiny: Path, number: int, name: str) -> None:
    assert read(changed(tiny, resample=number)).resample == name


@pytest.mark.parametrize("size", [28, {"shortest_edge": 28}, {"shortest_edge": 28, "longest_edge": None}])
def test_spellings_of_the_size(tiny: Path, size: Any) -> None:
    assert read(changed(tiny, size=size, crop_size=28)).resize_to == Size(height=28, width=28)


@pytest.mark.parametrize(
    "changes",
    [
        {"crop_size": {"height": 14, "width": 28}},
        {"crop_size": {"height": 42, "width": 42}},
        {"do_center_crop": False},
        {"do_center_crop": False, "do_resize": False},
        {"size": {"shortest_edge": 28, "longest_edge": 56}},
        {"size": {"max_height": 28, "max_width": 28}},
        {"size": {"shortest_edge": 10**9}},
        {"size": "large"},
        {"resample": 6},
        {"image_mean": [0.5]},
        {"image_std": [0.5, 0.5, 0.0]},
        {"image_mean": [1e308, 0.5, 0.5], "image_processor_type": "LlavaImageProcessor", "do_pad": True},
        {"rescale_factor": "x"},
        {"rescale_factor": 1e-320},
    ],
)
def test_processor_that_does_not_fit_the_tower_is_an_error(tiny: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="image processor's config is damaged"):
        read(changed(tiny, **changes))


def test_other_processors_are_refused_by_name(tiny: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="ViTImageProcessor"):
        read(changed(tiny, image_processor_type="ViTImageProcessor"))


def test_missing_processor_is_an_error(tiny: Path) -> None:
    (tiny / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no preprocessor_config\.json"):
        read(tiny)


@pytest.mark.parametrize("changes", [{"patch_size": 16}, {"vision_feature_select_strategy": "full"}])
def test_processor_that_counts_other_image_tokens_is_an_error(tiny: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="make them agree"):
        read(changed(tiny, "processor_config.json", **changes))


def test_other_picture_size(tmp_path: Path) -> None:
    folder = TinyCheckpoint(image_size=56, strategy="full").write(tmp_path / "c")
    spec = read(changed(folder, size={"shortest_edge": 64}), image_size=84)
    assert spec.resize_to == Size(height=96, width=96)
    assert spec.center_crop == spec.size == Size(height=84, width=84)
    assert spec.n_image_tokens == 37
    assert read(folder, image_size=56) == read(folder)


@pytest.mark.parametrize(
    ("image_size", "message"),
    [
        (0, "give a positive multiple of 14, such as 112"),
        (-14, "give a positive multiple of 14, such as 112"),
        (50, "give a positive multiple of 14, such as 112"),
        (14 * 300, "more than 256 patches a side: give at most 3584"),
    ],
)
def test_picture_size_that_does_not_fit_the_patches_is_refused(
    tiny: Path, image_size: int, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read(tiny, image_size)
