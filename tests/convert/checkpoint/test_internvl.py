"""InternVL's folders in both layouts: what is read from them, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acestep_gguf.bundle.image_spec import ClosestAspectTiles, Size
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.convert.checkpoint.chat_templates import INTERNVL2_5_SYSTEM
from acestep_gguf.convert.model import CheckpointModel, open_model
from acestep_gguf.errors import CheckpointError, UnsupportedModelError, UsageError
from acestep_gguf.prompt.chat_template import ChatTemplate
from tests.support.tiny_internvl import TinyInternVL

TOWERS: list[dict[str, Any]] = [
    {"has_biases": True},
    {"has_qk_norm": True, "norm_type": "rms_norm"},
]


def read(folder: Path, image_size: int | None = None) -> CheckpointModel:
    with open_model(folder, image_size) as model:
        return model


def change(folder: Path, file: str, **values: Any) -> None:
    """Set ``values`` in a JSON file; a dict changes only its own keys."""
    path = folder / file
    raw = json.loads(path.read_text())
    for key, value in values.items():
        raw[key] = raw[key] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(raw))


@pytest.mark.parametrize("options", TOWERS, ids=str)
def test_both_layouts_are_one_model(tmp_path: Path, options: dict[str, Any]) -> None:
    ours = TinyInternVL(**options).write(tmp_path / "transformers")
    original = TinyInternVL(is_original=True, **options).write(tmp_path / "original")
    with open_model(ours, None) as one, open_model(original, None) as other:
        assert one.config.text_config == other.config.text_config
        assert one.image == other.image
        for left, right in (
            (one.tensors.decoder, other.tensors.decoder),
            (one.tensors.tower, other.tensors.tower),
        ):
            assert left.keys() == right.keys()
            for name, tensor in left.items():
                assert tensor.shape == right[name].shape
                assert np.array_equal(tensor.read(), right[name].read()), name
        assert one.prompt.control_tokens == other.prompt.control_tokens
    towers = [
        convert_checkpoint(folder, tmp_path / f"{folder.name}-bundle", ["F16"], vision=["float32"]).vision
        for folder in (ours, original)
    ]
    assert len({tower.files["float32"].data.sha256 for tower in towers if tower}) == 1


@pytest.mark.parametrize("options", TOWERS, ids=str)
def test_rows_of_stacked_and_scaled_tensors_are_those_of_the_whole(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    folder = TinyInternVL(is_original=True, **options).write(tmp_path / "c")
    with open_model(folder, None) as model:
        for name, tensor in model.tensors.tower.items():
            whole = tensor.read()
            assert whole.shape == tensor.shape, name
            rows = whole.reshape(-1, tensor.shape[-1])
            step = max(1, len(rows) // 3)
            parts = [tensor.read_rows(i, min(i + step, len(rows))) for i in range(0, len(rows), step)]
            assert np.array_equal(np.concatenate(parts), rows), name


def test_layer_scale_is_in_the_layer_before_it(tmp_path: Path) -> None:
    tiny = TinyInternVL(dtype="F32")
    tensors = tiny.tensors()
    layer = "vision_tower.encoder.layer.1."
    with open_model(tiny.write(tmp_path / "c"), None) as model:
        for scale, name, ours in (
            ("lambda_1", "attention.projection_layer", "attn_out"),
            ("lambda_2", "mlp.fc2", "ffn_down"),
        ):
            factors = tensors[layer + scale]
            weight = model.tensors.tower[f"v.blk.1.{ours}.weight"].read()
            assert np.allclose(weight, tensors[f"{layer}{name}.weight"] * factors[:, np.newaxis])
            bias = model.tensors.tower[f"v.blk.1.{ours}.bias"].read()
            assert np.allclose(bias, tensors[f"{layer}{name}.bias"] * factors)
        assert not any("ls1" in name or "ls2" in name for name in model.tensors.tower)


def test_pictures_are_cut_into_tiles_whatever_the_file_says(tmp_path: Path) -> None:
    image = read(TinyInternVL(min_patches=2, max_patches=5).write(tmp_path / "c")).image
    assert image is not None
    assert image.tiles == ClosestAspectTiles(min_tiles=2, max_tiles=5)
    assert (image.size, image.n_image_tokens) == (Size(height=56, width=56), 4)


def test_the_original_layout_says_it_in_its_config(tmp_path: Path) -> None:
    model = read(TinyInternVL(is_original=True, max_patches=7).write(tmp_path / "c"))
    assert model.image is not None
    assert model.image.tiles == ClosestAspectTiles(min_tiles=1, max_tiles=7)
    assert model.image.mean == (0.485, 0.456, 0.406)
    assert model.image.resample == "bicubic"
    # The template in the folder's own files knows nothing of pictures; the original code has its own.
    assert "书生·万象" in model.prompt.chat_template
    assert (model.prompt.image_token, model.prompt.image_begin, model.prompt.image_end) == (
        "<IMG_CONTEXT>",
        "<img>",
        "</img>",
    )


def test_the_original_template_is_that_of_its_code(tmp_path: Path) -> None:
    """As its Conversation "internvl2_5" writes them; a system message takes the place of its own."""
    prompt = read(TinyInternVL(is_original=True).write(tmp_path / "c")).prompt
    template = ChatTemplate(prompt.chat_template, prompt.template_tokens)
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "A bird."}]}
    asked = "<|im_start|>user\n<IMG_CONTEXT>\nWhat is it?<|im_end|>\n"
    own = f"<|im_start|>system\n{INTERNVL2_5_SYSTEM}<|im_end|>\n"
    assert template.render([question]) == f"{own}{asked}<|im_start|>assistant\n"
    again = f"{own}{asked}<|im_start|>assistant\nA bird.<|im_end|>\n{asked}<|im_start|>assistant\n"
    assert template.render([question, answer, question]) == again
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    other = "<|im_start|>system\nBe brief.<|im_end|>\n"
    assert template.render([system, question]) == f"{other}{asked}<|im_start|>assistant\n"


def test_pictures_of_another_size(tmp_path: Path) -> None:
    folder = TinyInternVL(is_original=True).write(tmp_path / "c")
    image = read(folder, 84).image
    assert image is not None
    assert (image.size, image.resize_to, image.n_image_tokens) == (Size(height=84, width=84),) * 2 + (9,)
    change(folder, "config.json", force_image_size=112)
    image = read(folder).image
    assert image is not None
    assert (image.size, image.n_image_tokens) == (Size(height=112, width=112), 16)
    with pytest.raises(UsageError, match="multiple of 28, such as 224"):
        read(folder, 42)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vision_config": {"use_mean_pooling": False}}, "use_mean_pooling False is not supported"),
        ({"vision_config": {"use_absolute_position_embeddings": False}}, "use_absolute_position_embeddings"),
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy 'full'"),
        ({"text_config": {"model_type": "qwen3_moe"}}, "text_config of type qwen3_moe"),
        ({"text_config": {"model_type": "gpt_oss"}}, "text_config of type gpt_oss"),
        ({"text_config": {"model_type": "mistral"}}, "text_config of type mistral"),
        ({"vision_config": {"model_type": "clip_vision_model"}}, "vision_config of type clip_vision_model"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_refused_by_name(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    folder = TinyInternVL().write(tmp_path / "c")
    change(folder, "config.json", **values)
    with pytest.raises(UnsupportedModelError, match=message):
        read(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"llm_config": {"model_type": "internlm2"}}, "llm_config of type internlm2"),
        ({"llm_config": {"model_type": "internlm3"}}, "llm_config of type internlm3"),
        ({"llm_config": {"model_type": "phi3"}}, "llm_config of type phi3"),
        ({"ps_version": "v1"}, "ps_version 'v1' is not supported, only 'v2' is"),
        ({"template": "Hermes-2"}, "template 'Hermes-2' is not supported, only 'internvl2_5' is"),
        ({"use_thumbnail": False}, "use_thumbnail False"),
        ({"dynamic_image_size": False}, "dynamic_image_size False"),
        ({"pad2square": True}, "pad2square True"),
    ],
    ids=str,
)
def test_what_is_not_supported_of_the_original_layout_is_refused_by_name(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    folder = TinyInternVL(is_original=True).write(tmp_path / "c")
    change(folder, "config.json", **values)
    with pytest.raises(UnsupportedModelError, match=message):
        read(folder)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config.json", {"downsample_ratio": 0.3}, "downsample_ratio"),
        ("config.json", {"downsample_ratio": 5e-324}, "downsample_ratio"),
        ("config.json", {"vision_config": {"image_size": [56, 84]}}, "image_size"),
        ("config.json", {"vision_config": {"image_size": 42}}, "downsample_ratio"),
        ("config.json", {"vision_config": {"norm_type": "none"}}, "norm_type"),
        ("preprocessor_config.json", {"size": {"height": 84, "width": 84}}, "56 x 56"),
        ("preprocessor_config.json", {"min_patches": 3, "max_patches": 2}, "3 to 2 tiles"),
        ("processor_config.json", {"image_seq_length": 256}, "image_seq_length"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_found(tmp_path: Path, file: str, values: dict[str, Any], message: str) -> None:
    folder = TinyInternVL().write(tmp_path / "c")
    change(folder, file, **values)
    with pytest.raises(CheckpointError, match=message):
        read(folder)


def test_tokens_around_pictures_have_to_be_there(tmp_path: Path) -> None:
    for layout, missing in ((False, "<img>"), (True, "<IMG_CONTEXT>")):
        folder = TinyInternVL(is_original=layout).write(tmp_path / str(layout))
        path = folder / "tokenizer.json"
        tokenizer = json.loads(path.read_text())
        tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] != missing]
        path.write_text(json.dumps(tokenizer))
        with pytest.raises(CheckpointError, match=f"no token {missing}"):
            read(folder)


def test_tokens_around_pictures_are_control_tokens_whatever_the_file_says(tmp_path: Path) -> None:
    folder = TinyInternVL().write(tmp_path / "c")
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    for token in tokenizer["added_tokens"]:
        token["special"] = False
    path.write_text(json.dumps(tokenizer))
    prompt = read(folder).prompt
    assert {"<img>", "</img>", "<IMG_CONTEXT>"} <= prompt.control_tokens.keys()
    assert "<img>" not in prompt.user_defined_tokens
