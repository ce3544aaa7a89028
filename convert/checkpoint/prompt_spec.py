"""Chat template, stop tokens and template variables as a PromptSpec."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from acestep_gguf.bundle.image_spec import ImageSpec, control_ids
from acestep_gguf.bundle.schema import PromptSpec
from acestep_gguf.convert.checkpoint.chat_templates import BY_DECODER
from acestep_gguf.convert.checkpoint.config import ModelConfig, VisionLanguageConfig
from acestep_gguf.convert.checkpoint.folder import TOKENIZER_CONFIG_FILE, CheckpointFolder
from acestep_gguf.convert.checkpoint.tokenizer import TOKENIZER_FILE, Vocabulary
from acestep_gguf.errors import CheckpointError

# What transformers hands to a chat template beside the messages.
TEMPLATE_TOKENS: Final = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
    "image_token",
)


def read_prompt_spec(
    folder: CheckpointFolder, config: ModelConfig, vocabulary: Vocabulary, stop_ids: Sequence[int]
) -> PromptSpec:
    """How messages become tokens; ``stop_ids`` are control tokens of ``vocabulary``.

    Raises:
        CheckpointError: there is no chat template, or two files disagree about what stands for a picture.
    """
    template_tokens = _template_tokens(folder.tokenizer_config)
    image_token, family, image_begin, image_end, image_around = None, None, None, None, None
    if isinstance(config, VisionLanguageConfig):
        family = config.family
        image_begin, image_end = config.picture_marks
        image_around = family.image_around
        image_token = vocabulary.tokens[config.image_token_index]
        _check_image_token(image_token, folder)
    return PromptSpec(
        image_token=image_token,
        chat_template=(family and family.chat_template) or _chat_template(folder),
        template_tokens=template_tokens,
        control_tokens=vocabulary.control,
        user_defined_tokens=vocabulary.user_defined,
        stop_tokens=tuple(vocabulary.tokens[token_id] for token_id in stop_ids),
        normalizer=vocabulary.normalizer,
        add_bos=_adds_bos(folder.tokenizer_config, template_tokens, vocabulary),
        space_prefix=vocabulary.space_prefix,
        image_begin=image_begin,
        image_end=image_end,
        image_around=image_around,
    )


def picture_mark_ids(config: ModelConfig, image: ImageSpec | None, vocabulary: Vocabulary) -> tuple[int, ...]:
    """Ids of the tokens around each picture and its tiles, if the model has such tokens.

    Raises:
        CheckpointError: one is not in the vocabulary.
    """
    if not isinstance(config, VisionLanguageConfig):
        return ()
    ids = []
    marks = *config.picture_marks, config.family.image_around, config.vision_config.family.row_end
    for mark in filter(None, marks):
        if (token_id := vocabulary.id(mark)) is None:
            raise CheckpointError(f"the tokenizer has no token {mark}: get the files of one model.")
        ids.append(token_id)
    return *ids, *control_ids(image.tiles if image is not None else None)


def read_stop_ids(folder: CheckpointFolder, config: ModelConfig, vocabulary: Vocabulary) -> tuple[int, ...]:
    """generation_config.json's eos tokens, else config.json's, and the tokenizer's; at least one.

    Raises:
        CheckpointError: there is no such token, or it is not in the vocabulary.
    """
    generation_config = folder.read_json("generation_config.json") or {}
    ids = [*_as_ids(generation_config.get("eos_token_id"))] or [*_as_ids(config.text_config.eos_token_id)]
    eos_token = _template_tokens(folder.tokenizer_config).get("eos_token")
    if eos_token is not None:
        eos_id = vocabulary.id(eos_token)
        if eos_id is None:
            raise CheckpointError(f"the eos_token {eos_token!r} is not in {TOKENIZER_FILE}: add it there.")
        ids.append(eos_id)
    if not ids:
        raise CheckpointError(f"{folder.path} names no eos token: add one to {TOKENIZER_CONFIG_FILE}.")
    if bad := [token_id for token_id in ids if not 0 <= token_id < len(vocabulary.tokens)]:
        raise CheckpointError(f"the eos token {bad[0]} is not in the vocabulary: get the files of one model.")
    return tuple(dict.fromkeys(ids))


def _chat_template(folder: CheckpointFolder) -> str:
    """The processor's template before the tokenizer's: only the former is sure to know about pictures."""
    candidates = (
        folder.read_text("chat_template.jinja"),
        (folder.read_json("chat_template.json") or {}).get("chat_template"),
        folder.processor_config.get("chat_template"),
        folder.tokenizer_config.get("chat_template"),
    )
    for candidate in candidates:
        template = _default_template(candidate) if isinstance(candidate, list) else candidate
        if isinstance(template, str) and template:
            return template
    decoder_name = str((folder.config.get("text_config") or {}).get("_name_or_path"))
    for beginning, template in BY_DECODER.items():
        if decoder_name.startswith(beginning):
            return template
    raise CheckpointError(f"{folder.path} has no chat template: add a chat_template.jinja to the checkpoint.")


def _adds_bos(
    tokenizer_config: Mapping[str, Any], template_tokens: Mapping[str, str], vocabulary: Vocabulary
) -> bool:
    """Whether prompts begin with bos_token: add_bos_token, or else the tokenizer itself, says so."""
    bos_token, said = template_tokens.get("bos_token"), tokenizer_config.get("add_bos_token")
    if bos_token is None and vocabulary.bos is None:
        return False
    if bos_token not in vocabulary.control or vocabulary.bos not in (None, bos_token):
        raise CheckpointError(
            f"bos_token is {bos_token!r}, in {TOKENIZER_FILE} {vocabulary.bos!r}: get the files of one model."
        )
    return bool(said) if said is not None else vocabulary.bos is not None


def _default_template(named: list[Any]) -> str | None:
    for entry in named:
        match entry:
            case {"name": "default", "template": str(template)}:
                return template
    return None


def _template_tokens(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    extra = tokenizer_config.get("extra_special_tokens")
    named = {**tokenizer_config, **extra} if isinstance(extra, dict) else tokenizer_config
    names = {*TEMPLATE_TOKENS, *(extra if isinstance(extra, dict) else ())}
    texts = {name: _token_text(named.get(name)) for name in sorted(names)}
    return {name: text for name, text in texts.items() if text is not None}


def _token_text(value: Any) -> str | None:
    """A token's text; tokenizer_config.json has it bare or as an AddedToken."""
    match value:
        case str(text) | {"content": str(text)}:
            return text
    return None


def _check_image_token(image_token: str, folder: CheckpointFolder) -> None:
    for config in (folder.processor_config, folder.tokenizer_config):
        named = _token_text(config.get("image_token"))
        if named not in (None, image_token):
            raise CheckpointError(f"the processor's image token is {named!r}, config.json's {image_token!r}.")


def _as_ids(value: Any) -> Iterable[int]:
    ids = value if isinstance(value, list) else [value]
    return (token_id for token_id in ids if type(token_id) is int)
