import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from acestep_gguf.convert.checkpoint.config import parse_config
from acestep_gguf.convert.checkpoint.part_families import DECODERS, TOWERS
from acestep_gguf.convert.checkpoint.tensor_names import find_tensors
from acestep_gguf.convert.checkpoint.tensor_tables import HEAD, PROJECTOR
from acestep_gguf.convert.checkpoint.weight_files import open_weights
from acestep_gguf.errors import CheckpointError
from tests.support.tiny_checkpoints import PREFIXES, Layout, TinyCheckpoint, write_safetensors

Weights = dict[str, NDArray[np.float32]]


def find(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name here -> name in the checkpoint and shape."""
    path = folder / "config.json"
    with open_weights(folder, None) as weights:
        tensors = find_tensors(weights, parse_config(json.loads(path.read_text()), path))
    return {name: (tensor.name, tensor.shape) for name, tensor in (tensors.decoder | tensors.tower).items()}


def rewrite(folder: Path, weights: Weights) -> Path:
    write_safetensors(folder / "model.safetensors", weights, "BF16")
    return folder


@pytest.mark.parametrize("layout", PREFIXES)
def test_every_layout_has_the_same_tensors(tmp_path: Path, layout: Layout) -> None:
    tiny = TinyCheckpoint(layout=layout)
    found = find(tiny.write(tmp_path / layout))
    decoder, head, tower, projector, _ = PREFIXES[layout]
    assert found["token_embd.weight"] == (f"{decoder}embed_tokens.weight", (tiny.vocab_size, 256))
    assert found["blk.1.attn_output.weight"] == (f"{decoder}layers.1.self_attn.o_proj.weight", (256, 256))
    assert found["output.weight"][0] == f"{head}weight"
    assert found["v.blk.0.ffn_up.weight"] == (f"{tower}encoder.layers.0.mlp.fc1.weight", (160, 64))
    assert found["mm.2.bias"] == (f"{projector}linear_2.bias", (256,))
    # Two decoder layers of 12 tensors and 3 beside them; two tower layers of 16 and 5 + 4 beside them.
    assert len(found) == 2 * 12 + 3 + 2 * 16 + 5 + 4
    assert find(TinyCheckpoint().write(tmp_path / "other")).keys() == found.keys()


@pytest.mark.parametrize("layout", PREFIXES)
def test_embedding_that_ends_rows_of_tiles(tmp_path: Path, layout: Layout) -> None:
    tiny = TinyCheckpoint(architecture="llava_next", layout=layout)
    found = find(tiny.write(tmp_path / "next"))
    assert found["model.image_newline"] == (f"{PREFIXES[layout][-1]}image_newline", (256,))
    weights = tiny.tensors()
    del weights[f"{PREFIXES[layout][-1]}image_newline"]
    with pytest.raises(CheckpointError, match="tensor image_newline is missing"):
        find(rewrite(tmp_path / "next", weights))

    other = TinyCheckpoint()
    llava = other.write(tmp_path / "llava")
    rewrite(llava, other.tensors() | {"image_newline": np.zeros(256, np.float32)})
    with pytest.raises(CheckpointError, match="'image_newline' is unknown"):
        find(llava)


def test_tensors_come_layer_by_layer(tmp_path: Path) -> None:
    names = list(find(TinyCheckpoint(n_layers=3).write(tmp_path / "c")))
    blocks = [name.split(".")[1] for name in names if name.startswith("blk.")]
    assert blocks == sorted(blocks)
    assert names[0] == "token_embd.weight"


def test_tower_layers_behind_the_feature_layer_are_dropped(tmp_path: Path) -> None:
    found = find(TinyCheckpoint(feature_layer=(1, -3)).write(tmp_path / "c"))
    assert "v.blk.0.ln1.weight" in found
    assert "v.blk.1.ln1.weight" not in found
    assert found["mm.1.weight"][1] == (256, 128)


def test_buffers_of_old_versions_are_dropped(tmp_path: Path) -> None:
    tiny = TinyCheckpoint()
    weights = tiny.tensors()
    weights["vision_tower.vision_model.embeddings.position_ids"] = np.arange(5, dtype=np.float32)
    weights["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(32, np.float32)
    found = find(rewrite(tiny.write(tmp_path / "c"), weights))
    assert found == find(tiny.write(tmp_path / "plain"))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(TinyCheckpoint().tensors()))
def test_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    tiny = TinyCheckpoint()
    folder = tiny.write(tmp_path / "c")
    rewrite(folder, {other: weight for other, weight in tiny.tensors().items() if other != name})
    if "post_layernorm." in name or "encoder.layers.2." in name:  # dropped anyway
        find(folder)
        return
    with pytest.raises(CheckpointError, match=f"tensor {name} is missing"):
        find(folder)


@pytest.mark.parametrize(
    "name",
    [
        "language_model.model.layers.2.mlp.up_proj.weight",
        "language_model.model.layers.00.mlp.up_proj.weight",
        "language_model.model.layers.99999999999999999999.mlp.up_proj.weight",
        "language_model.model.layers.0.mlp.up_proj.bias",
        "vision_tower.vision_model.encoder.layers.3.mlp.fc1.weight",
        "vision_tower.vision_model.head.weight",
        "audio_tower.weight",
        "multi_modal_projector.linear_3.weight",
        "language_model.lm_head.bias",
    ],
)
def test_unknown_tensor_is_named(tmp_path: Path, name: str) -> None:
    tiny = TinyCheckpoint()
    folder = rewrite(tiny.write(tmp_path / "c"), tiny.tensors() | {name: np.ones(4, np.float32)})
    with pytest.raises(CheckpointError, match=f"tensor '{name}' is unknown"):
        find(folder)


def test_two_names_of_one_tensor_are_an_error(tmp_path: Path) -> None:
    tiny = TinyCheckpoint()
    weights = tiny.tensors()
    weights["lm_head.weight"] = weights["language_model.lm_head.weight"]
    with pytest.raises(CheckpointError, match="are the same tensor"):
        find(rewrite(tiny.write(tmp_path / "c"), weights))


def test_shape_that_the_config_does_not_ask_for_is_an_error(tmp_path: Path) -> None:
    tiny = TinyCheckpoint()
    weights = tiny.tensors()
    weights["multi_modal_projector.linear_1.weight"] = np.ones((256, 65), np.float32)
    with pytest.raises(CheckpointError, match=r"has shape \[256, 65\], config.json asks for \[256, 64\]"):
        find(rewrite(tiny.write(tmp_path / "c"), weights))


@pytest.mark.parametrize("layout", ["v4", "v5"])
def test_tied_output_is_not_looked_for(tmp_path: Path, layout: Layout) -> None:
    assert "output.weight" not in find(TinyCheckpoint(tied=True, layout=layout).write(tmp_path / "c"))


@pytest.mark.parametrize(("differs", "is_kept"), [(False, False), (True, True)])
def test_tied_output_that_is_there_counts_if_it_differs(tmp_path: Path, differs: bool, is_kept: bool) -> None:
    """As in transformers: with weights of its own, lm_head is not tied, whatever the config says."""
    tiny = TinyCheckpoint(tied=True)
    weights = tiny.tensors()
    head = weights["language_model.model.embed_tokens.weight"].copy()
    head[-1, -1] += differs
    weights["language_model.lm_head.weight"] = head
    assert ("output.weight" in find(rewrite(tiny.write(tmp_path / "c"), weights))) == is_kept


def test_projector_without_bias(tmp_path: Path) -> None:
    found = find(TinyCheckpoint(projector_bias=False).write(tmp_path / "c"))
    assert "mm.1.weight" in found
    assert "mm.1.bias" not in found


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("tower", TOWERS)
def test_no_name_stands_twice_in_the_tables(decoder: str, tower: str) -> None:
    parts = (DECODERS[decoder].tensors, HEAD, TOWERS[tower].tensors, PROJECTOR)
    rows: list[Any] = [row[0] for part in parts for row in part.rows.values() if row]
    assert len(rows) == len(set(rows))
