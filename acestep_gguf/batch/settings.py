"""What the answers of a batch depend on, beside pictures and questions."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import msgspec

from acestep_gguf.batch.journal import BUNDLE
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.options import AnswerOptions, EngineOptions


def settings_of(
    bundle: Bundle,
    engine: EngineOptions,
    answer: AnswerOptions,
    *,
    prompts: Sequence[str],
    system_prompt: str | None,
) -> dict[str, Any]:
    """Settings as JSON values, by the names of options; what is about speed or memory only is left out.

    Raises:
        BundleError: the bundle has no such decoder or tower.
    """
    decoder = bundle.decoder(engine.quant)
    tower = bundle.vision_file(engine.vision) if bundle.vision is not None else None
    files = [decoder.sha256, *((tower.sha256, tower.data.sha256) if tower is not None else ())]
    facts = msgspec.json.encode([files, bundle.prompt, bundle.image])
    settings = {
        BUNDLE: f"{bundle.name}, {decoder.file}, {hashlib.sha256(facts).hexdigest()[:16]}",
        "image_tokens": engine.image_tokens,
        "max_tiles": engine.max_tiles,
        "type_k": engine.type_k,
        "type_v": engine.type_v,
        **asdict(answer),
        "json_schema": None,
        "grammar": None,
        "prompt": [*prompts],
        "system_prompt": system_prompt,
    }
    if answer.constraint is not None:  # what was in its file, not the file's name
        settings[answer.constraint.option] = answer.constraint.text
    return msgspec.json.decode(msgspec.json.encode(settings), type=dict[str, Any])
