"""A checkpoint's folder, and what the JSON and text files in it say."""

import hashlib
import re
from pathlib import Path
from typing import Any, Final

from acestep_gguf.bundle.names import BUNDLE_FILE
from acestep_gguf.convert.checkpoint.json_file import parse_json, read_json, read_text
from acestep_gguf.convert.checkpoint.supported import check_no_pipeline
from acestep_gguf.errors import CheckpointError

CONFIG_FILE: Final = "config.json"
TOKENIZER_CONFIG_FILE: Final = "tokenizer_config.json"
PROCESSOR_FILE: Final = "processor_config.json"
# What the Hugging Face Hub calls a model: its owner and its own name.
HUB_NAME: Final = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


class CheckpointFolder:
    """The folder ``path``, and what several readers ask for: the configs of model, tokenizer and processor.

    ``tokenizer_config`` holds what the older special_tokens_map.json says, too. An object is empty when there
    is no such file. Everything else is read by the one who needs it, so that each file is read once.

    Raises:
        CheckpointError: it is not a checkpoint, or one of these files is damaged.
        UnsupportedModelError: the folder of a music or diffusion pipeline.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            _check_is_checkpoint(path)
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be read ({error.strerror}): check its permissions."
            ) from error
        text = read_text(path / CONFIG_FILE)
        self.config = parse_json(text, path / CONFIG_FILE)
        self.config_sha256 = hashlib.sha256(text.encode()).hexdigest()
        self.tokenizer_config = {
            **(self.read_json("special_tokens_map.json") or {}),
            **(self.read_json(TOKENIZER_CONFIG_FILE) or {}),
        }
        self.processor_config = self.read_json(PROCESSOR_FILE) or {}

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The JSON object in the file ``name``, None when there is no such file."""
        path = self.path / name
        return read_json(path) if path.exists() else None

    def read_text(self, name: str) -> str | None:
        """The text in the file ``name``, None when there is no such file."""
        path = self.path / name
        return read_text(path) if path.exists() else None


def _check_is_checkpoint(path: Path) -> None:
    if not path.is_dir():
        if HUB_NAME.fullmatch(str(path)) and not path.parent.exists():
            raise CheckpointError(
                f"{path} is not a folder: `hf download {path} --local-dir {path.name}` makes one to convert."
            )
        raise CheckpointError(f"{path} is not a folder: give the folder of a Hugging Face checkpoint.")
    if (path / BUNDLE_FILE).exists():
        raise CheckpointError(f"{path} is a bundle already: give the checkpoint that it was made from.")
    if not (path / CONFIG_FILE).exists():
        check_no_pipeline(path)
        raise CheckpointError(f"{path} has no {CONFIG_FILE}: give the folder of a Hugging Face checkpoint.")
