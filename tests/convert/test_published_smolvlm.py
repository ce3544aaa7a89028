"""SmolVLM's folders by hand from the published facts, with holes of the weights' true shapes."""

import json
from pathlib import Path

import pytest

from acestep_gguf.bundle.image_spec import LongestEdgeTiles, Size
from acestep_gguf.convert.model import CheckpointModel, open_model
from acestep_gguf.convert.pipeline import plan_conversion
from acestep_gguf.vision.tiling import n_positions, tiling_of
from tests.convert.test_published_folders import (
    PUBLISHED,
    decoder_shapes,
    tower_shapes,
    with_fillers,
    write_sparse,
)
from tests.support import tiny_smollm
from tests.support.tiny_families import DECODERS
from tests.support.tiny_smolvlm import SMOLVLM_TEMPLATE

GIB = 2**30
SMALLEST, BOARD, LARGEST = "smolvlm-256m-instruct", "smolvlm2-500m-video-instruct", "smolvlm2-2.2b-instruct"
NAMES = (SMALLEST, BOARD, LARGEST)
# What vision_config leaves out: defaults of its config class.
OMITTED = {"num_hidden_layers": 12, "intermediate_size": 3072}

N_ROWS = tiny_smollm.N_ROWS
TILES = {
    f"<row_{row + 1}_col_{column + 1}>": 49153 + N_ROWS * row + column
    for row in range(N_ROWS)
    for column in range(N_ROWS)
}
ADDED = {
    "<|endoftext|>": 0,
    "<|im_start|>": 1,
    "<|im_end|>": 2,
    "<global-img>": 49152,
    **TILES,
    "<fake_token_around_image>": 49189,
    "<image>": 49190,
    "<end_of_utterance>": 49279,
}


def write_folder(folder: Path, name: str) -> Path:
    """A version-4 folder around the config of ``name``."""
    folder.mkdir()
    config = json.loads((PUBLISHED / f"{name}.config.json").read_text())
    vision, text = OMITTED | config["vision_config"], config["text_config"]
    n_tokens = (vision["image_size"] // vision["patch_size"] // config["scale_factor"]) ** 2
    tokenizer = tiny_smollm.tokenizer_json(merges_as_pairs=False)
    vocab = tokenizer["model"]["vocab"]
    # As published, the first ids are special tokens.
    tokenizer["model"]["vocab"] = {token: token_id + 3 for token, token_id in vocab.items()}
    tokenizer["model"]["vocab"] |= {token: token_id for token, token_id in ADDED.items() if token_id < 3}
    files = {
        "config.json": config,
        "generation_config.json": {"eos_token_id": ADDED["<end_of_utterance>"], "pad_token_id": 2},
        "preprocessor_config.json": json.loads((PUBLISHED / f"{name}.preprocessor_config.json").read_text()),
        "processor_config.json": {"image_seq_len": n_tokens, "processor_class": "Idefics3Processor"},
        "tokenizer.json": with_fillers(tokenizer, 49152, ADDED),
        "tokenizer_config.json": DECODERS["smollm"].tokenizer_config,
        "chat_template.json": {"chat_template": SMOLVLM_TEMPLATE},
    }
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content))
    shapes = dict(decoder_shapes(text, bias=False)) | dict(tower_shapes(vision, 1, is_clip=False))
    named = {
        key.replace("vision_tower.vision_model.", "model.vision_model.")
        .replace("language_model.model.", "model.text_model.")
        .replace("language_model.", ""): shape
        for key, shape in shapes.items()
        if not key.startswith("multi_modal_projector.")
    }
    n_features = vision["hidden_size"] * config["scale_factor"] ** 2
    named["model.connector.modality_projection.proj.weight"] = (text["hidden_size"], n_features)
    write_sparse(folder / "model.safetensors", named, "BF16")
    return folder


def read(folder: Path) -> CheckpointModel:
    with open_model(folder, None) as model:
        return model


@pytest.mark.parametrize(
    ("name", "label", "side", "longest", "n_tokens", "most"),
    [
        (SMALLEST, "163M", 512, 2048, 64, 1127),
        (BOARD, "409M", 512, 2048, 64, 1127),
        (LARGEST, "1.8B", 384, 1536, 81, 1416),
    ],
)
def test_smolvlm(
    tmp_path: Path, name: str, label: str, side: int, longest: int, n_tokens: int, most: int
) -> None:
    model = read(write_folder(tmp_path / "c", name))
    assert (model.source.vision_model_type, model.source.text_model_type) == ("idefics3_vision", "llama")
    assert model.size_label == label
    image = model.image
    assert image is not None
    assert (image.size, image.n_image_tokens) == (Size(height=side, width=side), n_tokens)
    assert (image.resample, image.mean, image.std) == ("lanczos", (0.5,) * 3, (0.5,) * 3)
    assert isinstance(image.tiles, LongestEdgeTiles)
    assert image.tiles.longest_edge == longest
    assert image.tiles.marks.tiles[3][2] == ADDED["<row_4_col_3>"]
    tiling = tiling_of(image)
    assert tiling.most() == (17, most)
    assert n_positions(tiling, (640, 480)) == 12 * (n_tokens + 2) + 3 + n_tokens + 3
    assert n_positions(tiling_of(image, max_tiles=1), (640, 480)) == n_tokens + 3
    # What nobody may type.
    assert ADDED["<row_4_col_3>"] in model.prompt.control_tokens.values()
    assert model.prompt.stop_tokens == ("<end_of_utterance>",)
    assert model.tensors.tower["mm.fc.weight"].shape[1] == {512: 12288, 384: 10368}[side]


def test_the_boards_model_is_planned_at_its_full_size(tmp_path: Path) -> None:
    plan = plan_conversion(write_folder(tmp_path / "c", BOARD), tmp_path / "out", ["Q4_K_M"])
    sizes = {file.file: file.bytes for file in plan.files}
    assert sizes["vision-float32.onnx.data"] == pytest.approx(0.367 * GIB, rel=0.02)
    assert sizes["vision-int8.onnx.data"] < sizes["vision-float32.onnx.data"] / 2
    assert plan.memory < GIB
