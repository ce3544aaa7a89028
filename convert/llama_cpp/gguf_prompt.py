"""How messages become tokens, by what a decoder's GGUF metadata says and llama.cpp makes of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec

from acestep_gguf.bundle.decoder_info import CONTROL, USER_DEFINED
from acestep_gguf.bundle.gguf_header import GGUFHeader, StringArray
from acestep_gguf.bundle.schema import PromptSpec
from acestep_gguf.convert.checkpoint.tekken_merges import check_tekken
from acestep_gguf.errors import BundleError, CheckpointError, PromptError, UnsupportedModelError, UsageError
from acestep_gguf.llama.tekken import NAME as TEKKEN
from acestep_gguf.prompt.builder import PromptBuilder
from acestep_gguf.prompt.messages import user_message

DEFAULT_IMAGE_TOKEN: Final = "<image>"  # noqa: S105 (no password)
MAX_TEMPLATE_BYTES: Final = 2**20

# llama.cpp's templates of the same names, for files without one: LLaVA 1.5's decoders, and many fine-tunes'.
CHAT_TEMPLATES: Final = {
    "vicuna": (
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'user' -%}{{- 'USER: ' + message['content'] + '\n' -}}"
        "{%- elif message['role'] == 'assistant' -%}"
        "{{- 'ASSISTANT: ' + message['content'] + eos_token + '\n' -}}"
        "{%- else -%}{{- message['content'] + '\n\n' -}}{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"
    ),
    "chatml": (
        "{%- for message in messages -%}"
        "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' -}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
    ),
}

# Tokens that end an answer: by the metadata, and by their names as in llama-vocab.cpp.
STOP_KEYS: Final = ("eos", "eot", "eom")
STOP_NAMES: Final = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "</s>", "<EOT>",
    "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<｜end▁of▁sentence｜>",
)  # fmt: skip

TEMPLATE_KEYS: Final = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "pad_token": "padding",
}

# The byte-level tokenizers whose ids were compared with those of the tokenizers library, by
# tokenizer.ggml.pre, with what normalizes a text: llama.cpp does not.
NORMALIZERS: Final[Mapping[str, Literal["NFC"] | None]] = {
    "llama-bpe": None,
    "pixtral": None,  # llama.cpp cuts text as for llama-bpe
    "qwen2": "NFC",
    "smollm": None,
    TEKKEN: None,
}
# Those whose prompts llama.cpp begins with bos_token, unless the metadata says otherwise.
BEGIN_WITH_BOS: Final = frozenset({"llama-bpe", "pixtral", TEKKEN})

# bundle.json holds the prompt, and may have 16 MiB.
MAX_PROMPT_BYTES: Final = 8 * 2**20


def choose_template(name: str | None, file: Path | None) -> str | None:
    """The chat template that a user asks for: one of ``CHAT_TEMPLATES``, or the text of a file.

    Raises:
        UsageError: both, an unknown name, or the file cannot be read.
    """
    if name is None and file is None:
        return None
    if name is not None and file is not None:
        raise UsageError(
            "chat_template and chat_template_file are both given: give one of them.",
            settings=["chat_template", "chat_template_file"],
        )
    if file is None:
        if name not in CHAT_TEMPLATES:
            known = ", ".join(CHAT_TEMPLATES)
            raise UsageError(
                f"{name!r} is not a known template: choose from {known}, or give a chat_template_file.",
                settings=["chat_template_file"],
            )
        return CHAT_TEMPLATES[name]
    try:
        if file.stat().st_size > MAX_TEMPLATE_BYTES:
            raise UsageError(f"{file} is too large for a chat template: give a Jinja file.")
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read ({error}): give a Jinja file.") from error


def read_gguf_prompt(header: GGUFHeader, chat_template: str | None, image_token: str | None) -> PromptSpec:
    """How messages become tokens of the decoder that ``header`` describes.

    ``chat_template`` takes the place of the file's; ``image_token`` is what it writes where a picture comes,
    None for a model that cannot see. It need not be in the vocabulary: no tokenizer sees it.

    Raises:
        BundleError: the vocabulary is damaged.
        CheckpointError: there is no chat template, no token that ends an answer, or no place for a picture.
        UnsupportedModelError: a tokenizer that has not been compared with the one that it is made from.
    """
    pre = _known_tokenizer(header)
    tokens = _tokens(header)
    types = header.metadata.get("tokenizer.ggml.token_type")
    if not isinstance(types, memoryview) or len(types) != len(tokens):
        raise _damaged(header, "its tokens and their types differ in number")
    texts = {
        kind: {_text(header, tokens[id]): id for id, given in enumerate(types) if given == kind}
        for kind in (CONTROL, USER_DEFINED)
    }
    if pre == TEKKEN:
        check_tekken([_text(header, token) for token in tokens], types, _merges(header))
    control = texts[CONTROL]
    is_sentencepiece = pre is None
    named = {name: _special(header, tokens, key) for name, key in TEMPLATE_KEYS.items()}
    stops = [_special(header, tokens, key) for key in STOP_KEYS] + [
        name for name in STOP_NAMES if name in control
    ]
    try:
        prompt = PromptSpec(
            image_token=image_token,
            chat_template=chat_template or _template(header),
            template_tokens={name: text for name, text in named.items() if text is not None},
            control_tokens=control,
            # The token that stands for a picture is not part of any text.
            user_defined_tokens={text: id for text, id in texts[USER_DEFINED].items() if text != image_token},
            stop_tokens=tuple(dict.fromkeys(text for text in stops if text is not None)),
            normalizer=None if pre is None else NORMALIZERS[pre],
            add_bos=_flag(header, "add_bos_token", default=is_sentencepiece or pre in BEGIN_WITH_BOS),
            space_prefix="prepend"
            if is_sentencepiece and _flag(header, "add_space_prefix", default=True)
            else "never",
        )
    except ValueError as error:
        raise _damaged(header, str(error)) from error
    if not prompt.stop_tokens:
        raise CheckpointError(f"{header.path} does not say which token ends an answer: get another file.")
    if len(msgspec.json.encode(prompt)) > MAX_PROMPT_BYTES:
        raise _damaged(header, f"its added tokens take more than {MAX_PROMPT_BYTES >> 20} MiB")
    _check_takes_a_question(prompt, header.path)
    return prompt


def byte_level_vocabulary(header: GGUFHeader) -> tuple[dict[str, int], frozenset[str]]:
    """Ids of the tokens of a byte-level BPE, and its merges.

    Raises:
        BundleError: they are not there, or damaged.
    """
    ids = {_text(header, token): token_id for token_id, token in enumerate(_tokens(header))}
    return ids, frozenset(_merges(header))


def _merges(header: GGUFHeader) -> list[str]:
    merges = header.metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, StringArray):
        raise _damaged(header, "it has no merges")
    return [_text(header, merge) for merge in merges.read()]


def _known_tokenizer(header: GGUFHeader) -> str | None:
    """tokenizer.ggml.pre of a byte-level tokenizer; None for SentencePiece's, which needs none."""
    model, pre = (header.metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if model == "llama":
        return None
    if model != "gpt2":
        raise UnsupportedModelError(
            f"{header.path} has a {str(model)[:40]!r} tokenizer: only byte-level BPE ('gpt2') and "
            "SentencePiece's ('llama') are supported."
        )
    if not isinstance(pre, str):
        raise UnsupportedModelError(
            f"{header.path} does not say how it cuts text into words (tokenizer.ggml.pre), so llama.cpp"
            " would guess: get a newer file of this model."
        )
    if pre not in NORMALIZERS:
        raise UnsupportedModelError(
            f"{header.path} cuts text into words as {pre[:40]!r} does: only {', '.join(NORMALIZERS)} are "
            "supported."
        )
    return pre


def _check_takes_a_question(prompt: PromptSpec, path: Path) -> None:
    """Ask one, about a picture if the model can see, to find out whether the template takes it."""
    sees = prompt.image_token is not None
    try:
        builder = PromptBuilder(prompt, lambda _text: [], lambda _token: b"")
        builder.build([user_message("What is it?", [b"a picture"] if sees else [])])
    except PromptError as error:
        what, advice = (
            (" about a picture", "name what its template writes for a picture as image_token, or ")
            if sees
            else ("", "")
        )
        raise CheckpointError(
            f"{path}: no question{what} can be put ({str(error).rstrip('.')}): {advice}give another "
            "chat_template_file.",
            settings=["image_token", "chat_template_file"],
        ) from error


def _template(header: GGUFHeader) -> str:
    template = header.metadata.get("tokenizer.chat_template")
    if not isinstance(template, str) or not template:
        raise CheckpointError(
            f"{header.path} has no chat template: give a chat_template_file, or as chat_template one of "
            f"{', '.join(CHAT_TEMPLATES)} (LLaVA 1.5 has vicuna).",
            settings=["chat_template", "chat_template_file"],
        )
    if len(template.encode()) > MAX_TEMPLATE_BYTES:
        raise _damaged(header, f"its chat template has more than {MAX_TEMPLATE_BYTES >> 20} MiB")
    return template


def _tokens(header: GGUFHeader) -> list[bytes]:
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, StringArray):
        raise _damaged(header, "it has no vocabulary")
    return tokens.read()


def _special(header: GGUFHeader, tokens: list[bytes], name: str) -> str | None:
    """The token whose id the metadata has as ``name``."""
    key = f"tokenizer.ggml.{name}_token_id"
    token_id = header.metadata.get(key)
    if token_id is None:
        return None
    if type(token_id) is not int or not 0 <= token_id < len(tokens):
        raise _damaged(header, f"{key} is {token_id}")
    return _text(header, tokens[token_id])


def _text(header: GGUFHeader, token: bytes) -> str:
    try:
        return token.decode()
    except UnicodeDecodeError as error:
        raise _damaged(header, f"token {token!r} is not UTF-8") from error


def _flag(header: GGUFHeader, name: str, *, default: bool) -> bool:
    value = header.metadata.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, bool):
        raise _damaged(header, f"tokenizer.ggml.{name} is {value!r}")
    return value


def _damaged(header: GGUFHeader, problem: str) -> BundleError:
    return BundleError(f"{header.path} is damaged ({problem}): get the file again.")
