"""The checkpoint itself in transformers, as a reference. The only module that knows torch; see the extra."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from acestep_gguf.errors import CheckpointError, MissingPackageError
from acestep_gguf.prompt.messages import user_message
from acestep_gguf.quality.answers import EncodedPicture, GreedyAnswer
from acestep_gguf.vision.image import to_rgb
from acestep_gguf.vision.image_file import open_image

Floats = npt.NDArray[np.float32]

# What transformers raises about folders that it cannot read; it documents none of it.
_LOADING_ERRORS: Final = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError)

# What a processor makes of a picture; the second only where the model cuts pictures up.
IMAGE_INPUTS: Final = ("pixel_values", "image_sizes")


class TransformersAnswerer:
    """A checkpoint in float32 on the CPU, with transformers' own prompts, pictures and numbers.

    Raises:
        MissingPackageError: the extra is not installed.
        CheckpointError: transformers cannot read the checkpoint.
    """

    name: Final = "checkpoint"
    tower: Final = "checkpoint"

    def __init__(self, folder: Path, *, max_tokens: int) -> None:
        try:
            import torch  # noqa: PLC0415 (not everybody has it)
            from transformers import AutoModelForImageTextToText  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise MissingPackageError(error.name or "transformers", extra="reference") from error
        self._torch = torch
        self._max_tokens = max_tokens
        self.bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        try:
            self._processor = read_processor(folder)
            self._model: Any = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
            ).eval()
        except _LOADING_ERRORS as error:
            reason = str(error).strip().partition("\n")[0]
            raise CheckpointError(f"transformers cannot read {folder} ({reason}): check the path.") from error

    def image_embeds(self, path: Path) -> Floats:
        """Embeds of the picture at ``path``, float32 [n_image_tokens, n_embd]."""
        with self._torch.inference_mode():
            seen = {key: value for key, value in self._inputs("", path).items() if key in IMAGE_INPUTS}
            found = self._model.get_image_features(**seen).pooler_output
        # Of a picture that is cut up, some give all rows, others those of each tile.
        embeds: Floats = np.concatenate([rows.numpy() for rows in found])
        return embeds

    def write(self, question: str, shown: EncodedPicture) -> GreedyAnswer:
        """The greedy answer, of ``max_tokens`` at most."""
        started = perf_counter()
        inputs = self._inputs(question, shown.path)
        n_prompt = inputs["input_ids"].shape[1]
        with self._torch.inference_mode():
            output = self._model.generate(
                **inputs, max_new_tokens=self._max_tokens, do_sample=False, repetition_penalty=1.0
            )
        tokens = output[0, n_prompt:].tolist()
        text = self._processor.tokenizer.decode(tokens, skip_special_tokens=True)
        return GreedyAnswer(tuple(tokens), text, perf_counter() - started)

    def logits(self, question: str, shown: EncodedPicture, tokens: Sequence[int]) -> Floats:
        """What it expects in the place of each of ``tokens``: float32 [len(tokens), n_vocab]."""
        inputs = self._inputs(question, shown.path)
        torch = self._torch
        given = torch.tensor([list(tokens[:-1])], dtype=torch.long)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], given], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.inference_mode():
            logits = self._model(**inputs, logits_to_keep=len(tokens)).logits
        rows: Floats = logits[0].float().numpy()
        return rows

    def _inputs(self, question: str, path: Path) -> dict[str, Any]:
        messages = [user_message(question, [path])]
        text = self._processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        inputs = self._processor(text=[text], images=[to_rgb(open_image(path))], return_tensors="pt")
        return {key: inputs[key] for key in ("input_ids", "attention_mask", *IMAGE_INPUTS) if key in inputs}


def read_processor(folder: Path) -> Any:
    """transformers' processor of the checkpoint in ``folder``, without the part for videos that some have.

    That part needs torchvision, and there are no videos. Of two backends, PIL's is the reference. SmolVLM's
    processor is Idefics3's with videos, for which it wants one more package.
    """
    from transformers import (  # noqa: PLC0415
        AutoConfig,
        Idefics3Processor,
        LlavaProcessor,
        SmolVLMProcessor,
    )
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING  # noqa: PLC0415

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    kind: Any = PROCESSOR_MAPPING[type(config)]
    kind = Idefics3Processor if kind is SmolVLMProcessor else kind
    if kind is LlavaProcessor and config.vision_config.model_type == "pixtral":
        kind = _pixtral_processor()
    parts = [part for part in kind.get_attributes() if part != "video_processor"]
    without_videos: Any = type(kind.__name__, (kind,), {"get_attributes": staticmethod(lambda: parts)})
    return without_videos.from_pretrained(folder, backend="pil", local_files_only=True)


def _pixtral_processor() -> Any:
    """Pixtral's processor, which config classes do not lead to.

    Its module wants torchvision's backend for a function that PIL's has, too.
    """
    from transformers.models.pixtral import image_processing_pil_pixtral  # noqa: PLC0415

    other = f"{image_processing_pil_pixtral.__package__}.image_processing_pixtral"
    sys.modules.setdefault(other, image_processing_pil_pixtral)
    from transformers.models.pixtral.processing_pixtral import PixtralProcessor  # noqa: PLC0415

    return PixtralProcessor


@contextmanager
def open_reference(folder: Path, *, max_tokens: int) -> Iterator[TransformersAnswerer]:
    """The checkpoint in ``folder``; its memory is free again afterwards. Raises what the class raises."""
    answerer = TransformersAnswerer(folder, max_tokens=max_tokens)
    try:
        yield answerer
    finally:
        del answerer._model
