"""Numbers that no model has, in a checkpoint's JSON files: they are planned with, or refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from acestep_gguf.convert import plan_conversion
from acestep_gguf.convert.checkpoint.config import (
    TextConfig,
    VisionConfig,
    VisionLanguageConfig,
)
from acestep_gguf.convert.checkpoint.image_processor_config import ImageProcessorConfig
from acestep_gguf.convert.checkpoint.rope_parameters import RopeParameters
from acestep_gguf.errors import AceStepError
from tests.support.tiny_checkpoints import TinyCheckpoint
from tests.support.tiny_internvl import TinyInternVL

# As JSON has them.
NUMBERS = (
    "0", "-1", "1", "1.5", "1e-320", "1e-50", "1e-30", "1e30", "1e39", "1e308", "1e999", "-1e999",
    "1e9", "-1e9", str(2**31), str(2**32), str(2**63), "1" + 400 * "0", "4.5399929762484854e-05",
)  # fmt: skip
# File, and keys from its top.
PLACES = (
    *(("config.json", key) for key in VisionLanguageConfig.__dataclass_fields__),
    *(("config.json", "text_config", key) for key in TextConfig.__dataclass_fields__),
    *(("config.json", "text_config", "rope_scaling", key) for key in RopeParameters.__dataclass_fields__),
    *(("config.json", "vision_config", key) for key in VisionConfig.__dataclass_fields__),
    *(("preprocessor_config.json", key) for key in ImageProcessorConfig.__dataclass_fields__),
    ("preprocessor_config.json", "size", "shortest_edge"),
    ("processor_config.json", "patch_size"),
    ("generation_config.json", "eos_token_id"),
)
FACTOR = ("config.json", "text_config", "rope_scaling", "factor")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its context is stretched by YaRN, and its pictures are padded."""
    tiny = TinyCheckpoint(yarn=True, pads_to_square=True)
    return tiny.write(tmp_path_factory.mktemp("extreme") / "checkpoint")


@pytest.fixture(scope="module")
def internvl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyInternVL(is_original=True).write(tmp_path_factory.mktemp("extreme") / "internvl")


def with_number(text: str, keys: tuple[str, ...], number: str) -> str:
    """The JSON ``text`` with ``number`` at ``keys``, for each channel where it is about channels."""
    content: Any = json.loads(text)
    part = content
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = ["@"] * 3 if keys[-1] in ("image_mean", "image_std") else "@"
    return json.dumps(content).replace('"@"', number)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from(PLACES), number=st.sampled_from(NUMBERS))
@example(place=FACTOR, number="1e9")
@example(place=FACTOR, number="4.5399929762484854e-05")
@example(place=("preprocessor_config.json", "rescale_factor"), number="1e-320")
@example(place=("preprocessor_config.json", "image_mean"), number="1e308")
def test_any_number_is_planned_with_or_refused_in_one_line(
    checkpoint: Path, tmp_path: Path, place: tuple[str, ...], number: str
) -> None:
    check_is_planned_or_refused(checkpoint, tmp_path, place, number)


INTERNVL_KEYS = (
    "downsample_ratio",
    "force_image_size",
    "max_dynamic_patch",
    "min_dynamic_patch",
    "select_layer",
)
INTERNVL_VISION_KEYS = ("hidden_size", "image_size", "layer_norm_eps", "num_hidden_layers", "patch_size")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.sampled_from(
        [
            *(("config.json", key) for key in INTERNVL_KEYS),
            *(("config.json", "vision_config", key) for key in INTERNVL_VISION_KEYS),
        ]
    ),
    number=st.sampled_from(NUMBERS),
)
@example(place=("config.json", "downsample_ratio"), number="1e-320")
def test_any_number_of_internvl_is_planned_with_or_refused_in_one_line(
    internvl: Path, tmp_path: Path, place: tuple[str, ...], number: str
) -> None:
    check_is_planned_or_refused(internvl, tmp_path, place, number)


def check_is_planned_or_refused(
    checkpoint: Path, tmp_path: Path, place: tuple[str, ...], number: str
) -> None:
    path, keys = checkpoint / place[0], place[1:]
    text = path.read_text()
    path.write_text(with_number(text, keys, number))
    message = ""
    try:
        plan_conversion(checkpoint, tmp_path / "bundle", ["Q8_0"], mmproj=["F16"], vision=["float32"])
    except AceStepError as error:
        message = str(error)
    finally:
        path.write_text(text)
    assert "\n" not in message
    assert not (tmp_path / "bundle").exists()
