"""A checkpoint, read and checked, its weights open to be read."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

from gguf.utility import model_weight_count_rounded_notation

from acestep_gguf.bundle.image_spec import ImageSpec
from acestep_gguf.bundle.schema import PromptSpec, Source
from acestep_gguf.convert.checkpoint.config import (
    ModelConfig,
    VisionLanguageConfig,
    parse_config,
    parse_decoder_config,
)
from acestep_gguf.convert.checkpoint.families import ARCHITECTURES
from acestep_gguf.convert.checkpoint.folder import CONFIG_FILE, CheckpointFolder
from acestep_gguf.convert.checkpoint.identity import sampled_sha256
from acestep_gguf.convert.checkpoint.image_processor import read_image_spec
from acestep_gguf.convert.checkpoint.part_families import DECODERS
from acestep_gguf.convert.checkpoint.prequantized.formats import read_format
from acestep_gguf.convert.checkpoint.prompt_spec import (
    picture_mark_ids,
    read_prompt_spec,
    read_stop_ids,
)
from acestep_gguf.convert.checkpoint.supported import check_architecture
from acestep_gguf.convert.checkpoint.tensor_names import ModelTensors, find_tensors
from acestep_gguf.convert.checkpoint.tokenizer import (
    Vocabulary,
    added_token_id,
    read_tokenizer,
    read_vocabulary,
)
from acestep_gguf.convert.checkpoint.weight import CheckpointWeights
from acestep_gguf.convert.checkpoint.weight_files import open_weights
from acestep_gguf.convert.tower.graph import check_activations
from acestep_gguf.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointModel:
    """What the files in the folder ``path`` say; ``image`` is None for a decoder without a vision tower.

    ``tensors`` are those of ``weights`` that are needed.
    """

    path: Path
    config: ModelConfig
    weights: CheckpointWeights
    tensors: ModelTensors
    vocabulary: Vocabulary
    image: ImageSpec | None
    prompt: PromptSpec
    source: Source

    @property
    def size_label(self) -> str:
        """The decoder's number of weights, as in ``Name-5.6M-Q4_K_M.gguf``."""
        n_weights = sum(prod(tensor.shape) for tensor in self.tensors.decoder.values())
        return cast(str, model_weight_count_rounded_notation(n_weights))


@contextmanager
def open_model(path: Path, image_size: int | None) -> Iterator[CheckpointModel]:
    """Read and check the checkpoint in the folder ``path``; inside, its weights can be read.

    Args:
        path: folder of the checkpoint.
        image_size: side of the pictures in pixels, None for the checkpoint's.

    Raises:
        CheckpointError: the checkpoint is damaged or contradicts itself.
        UnsupportedModelError: it is of a kind that this software does not run.
        UsageError: ``image_size`` does not fit the tower, or there is no tower.
    """
    folder = CheckpointFolder(path)
    check_architecture(folder.config, path)
    with open_weights(path, read_format(folder.config, path)) as weights:
        yield _read_model(folder, weights, image_size)


def _read_model(
    folder: CheckpointFolder, weights: CheckpointWeights, image_size: int | None
) -> CheckpointModel:
    tokenizer = read_tokenizer(folder)
    config = _read_config(folder, tokenizer)
    vocabulary = read_vocabulary(tokenizer, config.text_config.vocab_size, config.image_token_index)
    decoder_family = config.text_config.family
    architecture, vision_model_type = decoder_family.architecture, None
    image = None
    if isinstance(config, VisionLanguageConfig):
        architecture, vision_model_type = config.family.architecture, config.vision_config.model_type
        check_activations(config)
        image = read_image_spec(folder, config, vocabulary, image_size)
    elif image_size is not None:
        raise UsageError(f"{folder.path} has no vision tower: leave the image size out.")
    stop_ids = read_stop_ids(folder, config, vocabulary)
    marks = picture_mark_ids(config, image, vocabulary)
    vocabulary = vocabulary.with_control_tokens([*stop_ids, *marks])
    return CheckpointModel(
        path=folder.path,
        config=config,
        weights=weights,
        tensors=find_tensors(weights, config, vocabulary.id(_row_end(config))),
        vocabulary=vocabulary,
        image=image,
        prompt=read_prompt_spec(folder, config, vocabulary, stop_ids),
        source=Source(
            architecture=architecture,
            vision_model_type=vision_model_type,
            text_model_type=decoder_family.model_type,
            config_sha256=folder.config_sha256,
            weights_sha256=sampled_sha256(weights.stored),
            quantization=weights.quantization,
        ),
    )


def _row_end(config: ModelConfig) -> str | None:
    return config.vision_config.family.row_end if isinstance(config, VisionLanguageConfig) else None


def _read_config(folder: CheckpointFolder, tokenizer: Mapping[str, Any]) -> ModelConfig:
    path, model_type = folder.path / CONFIG_FILE, folder.config["model_type"]
    if model_type in DECODERS:
        return parse_decoder_config(folder.config, path)
    image_token = ARCHITECTURES[model_type].image_token
    if image_token is None or "image_token_id" in folder.config:
        return parse_config(folder.config, path)
    return parse_config(folder.config | {"image_token_id": added_token_id(tokenizer, image_token)}, path)
