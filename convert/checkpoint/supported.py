"""Which checkpoints can be converted, and a sentence for those that cannot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from acestep_gguf.convert.checkpoint.families import ARCHITECTURES
from acestep_gguf.convert.checkpoint.part_families import DECODERS
from acestep_gguf.errors import CheckpointError, UnsupportedModelError

SUPPORTED: Final = (
    f"{', '.join(family.name for family in ARCHITECTURES.values())} with a Qwen2, Qwen3, Llama or Mistral "
    "decoder, or a decoder of these alone"
)

MUSIC: Final = (
    "this is ACE-Step, which makes music from text: it has no picture input, so there is nothing to convert; "
    f"give a checkpoint of {SUPPORTED}."
)
QWEN_VL: Final = (
    "Qwen-VL models have a tower for pictures of any size and M-RoPE positions of their own, and llama.cpp's "
    "own tools (convert_hf_to_gguf.py --mmproj, llama-mtmd-cli) run them; "
    f"this software converts {SUPPORTED}."
)
# Folders in the published repository of ACE-Step 1.5.
MUSIC_FOLDERS: Final = ("acestep-v15-", "acestep-5Hz-lm-")

# By model_type of config.json.
SENTENCES: Final = {
    "qwen2_vl": QWEN_VL,
    "qwen2_5_vl": QWEN_VL,
    "qwen3_vl": QWEN_VL,
}


def check_no_pipeline(folder: Path) -> None:
    """Refuse folders of music and diffusion pipelines, which have no config.json at their top.

    Raises:
        UnsupportedModelError: it is one.
    """
    if _holds_ace_step(folder):
        raise UnsupportedModelError(f"{folder}: {MUSIC}")
    if (folder / "model_index.json").exists():
        raise UnsupportedModelError(
            f"{folder} is a diffusion pipeline (model_index.json), which makes pictures or sound and answers "
            f"no questions: give a checkpoint of {SUPPORTED}."
        )


def check_architecture(config: dict[str, Any], folder: Path) -> None:
    """Refuse what is not the supported architecture, by ``model_type`` and ``architectures``.

    Raises:
        UnsupportedModelError: a model that this software does not run.
        CheckpointError: config.json does not say what it is.
    """
    model_type, architectures = config.get("model_type"), config.get("architectures")
    names = [
        model_type,
        config.get("_class_name"),
        *(architectures if isinstance(architectures, list) else []),
    ]
    if any(map(_is_ace_step, names)) or (model_type is None and _holds_ace_step(folder)):
        raise UnsupportedModelError(f"{folder}: {MUSIC}")
    if not isinstance(model_type, str):
        raise CheckpointError(f"{folder}/config.json has no model_type: give a checkpoint of {SUPPORTED}.")
    if model_type in SENTENCES:
        raise UnsupportedModelError(f"{folder} is a {model_type} checkpoint: {SENTENCES[model_type]}")
    if model_type in DECODERS:
        return
    family = ARCHITECTURES.get(model_type)
    if family is None:
        raise UnsupportedModelError(f"{folder} is a {model_type} checkpoint: supported is {SUPPORTED}.")
    names_here = {name: key for key, name in family.keys.items()}
    text_key = names_here.get("text_config", "text_config")
    _check_part(config, "vision_config", family.tower.model_type, family.towers, folder)
    _check_part(config, text_key, family.decoder.model_type, family.decoders, folder)


def _check_part(
    config: dict[str, Any], key: str, default: str, families: Mapping[str, object], folder: Path
) -> None:
    part = config.get(key)
    if part is not None and not isinstance(part, dict):
        raise CheckpointError(f"{folder}/config.json: {key} is not an object: get an undamaged checkpoint.")
    model_type = (part or {}).get("model_type", default)
    if not isinstance(model_type, str) or model_type not in families:
        raise UnsupportedModelError(
            f"{folder} has a {key} of type {model_type}: supported are {', '.join(families)}."
        )


def _is_ace_step(name: object) -> bool:
    """Whether a model's or class's name is ACE-Step's, such as "AceStepConditionGenerationModel"."""
    return isinstance(name, str) and name.lower().replace("_", "").replace("-", "").startswith("acestep")


def _holds_ace_step(folder: Path) -> bool:
    return any(path.name.startswith(MUSIC_FOLDERS) for path in folder.iterdir() if path.is_dir())
