"""A checkpoint, read and checked, but for its weights."""

from dataclasses import dataclass
from math import prod
from typing import cast

from gguf.utility import model_weight_count_rounded_notation

from acestep_gguf.bundle.schema import ImageSpec, PromptSpec, Source
from acestep_gguf.convert.checkpoint.config import (
    LlavaConfig,
    ModelConfig,
    parse_config,
    parse_decoder_config,
)
from acestep_gguf.convert.checkpoint.families import DECODERS
from acestep_gguf.convert.checkpoint.folder import Checkpoint
from acestep_gguf.convert.checkpoint.image_processor import read_image_spec
from acestep_gguf.convert.checkpoint.prompt_spec import read_prompt_spec, read_stop_ids
from acestep_gguf.convert.checkpoint.supported import check_architecture
from acestep_gguf.convert.checkpoint.tensor_names import ModelTensors, find_tensors
from acestep_gguf.convert.checkpoint.tokenizer import Vocabulary, read_vocabulary
from acestep_gguf.convert.tower.graph import check_activations
from acestep_gguf.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What the checkpoint's files say; ``image`` is None for a decoder without a vision tower.

    ``held_bytes`` is the memory that reading packed weights holds on to.
    """

    config: ModelConfig
    tensors: ModelTensors
    vocabulary: Vocabulary
    image: ImageSpec | None
    prompt: PromptSpec
    source: Source
    held_bytes: int

    @property
    def size_label(self) -> str:
        """The decoder's number of weights, as in ``Name-5.6M-Q4_K_M.gguf``."""
        n_weights = sum(prod(tensor.shape) for tensor in self.tensors.decoder.values())
        return cast(str, model_weight_count_rounded_notation(n_weights))


def read_model(checkpoint: Checkpoint, image_size: int | None) -> Model:
    """Read and check everything, for the checkpoint's picture size or for ``image_size`` instead.

    Raises:
        CheckpointError: the checkpoint is damaged or contradicts itself.
        UnsupportedModelError: it is of a kind that this software does not run.
        UsageError: ``image_size`` does not fit the tower, or there is none.
    """
    check_architecture(checkpoint.config, checkpoint.folder)
    parse = parse_decoder_config if checkpoint.config["model_type"] in DECODERS else parse_config
    config = parse(checkpoint.config, checkpoint.folder / "config.json")
    vocabulary = read_vocabulary(checkpoint, config.text_config.vocab_size, config.image_token_index)
    decoder_family, tower_family = config.text_config.family, None
    image = None
    if isinstance(config, LlavaConfig):
        tower_family = config.vision_config.family
        check_activations(config)
        image = read_image_spec(checkpoint, config, image_size)
    elif image_size is not None:
        raise UsageError(f"{checkpoint.folder} has no vision tower: leave the image size out.")
    stop_ids = read_stop_ids(checkpoint, config, vocabulary)
    vocabulary = vocabulary.with_control_tokens(stop_ids)
    prompt = read_prompt_spec(checkpoint, config, vocabulary, stop_ids)
    checkpoint.open_weights()
    return Model(
        config=config,
        tensors=find_tensors(checkpoint, config),
        vocabulary=vocabulary,
        image=image,
        prompt=prompt,
        source=Source(
            architecture="LlavaForConditionalGeneration" if tower_family else decoder_family.architecture,
            vision_model_type=tower_family.model_type if tower_family else None,
            text_model_type=decoder_family.model_type,
            config_sha256=checkpoint.config_sha256(),
            weights_sha256=checkpoint.weights_sha256(),
            quantization=checkpoint.quantization,
        ),
        held_bytes=checkpoint.held_bytes,
    )
