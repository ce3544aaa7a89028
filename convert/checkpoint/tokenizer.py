"""tokenizer.json as a GGUF vocabulary: tokens, their types, and merges or scores.

Only what llama.cpp tokenizes in the same way is taken: byte-level BPE with the pre-tokenizer of Qwen2,
Llama 3 or SmolLM, and no normalizer or NFC, and SentencePiece's BPE as Llama has it (sentencepiece.py);
and Tekken, which is tokenized here (acestep_gguf/llama/tekken.py). Everything else is refused by name.
"""

from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Self

from gguf import TokenType

from acestep_gguf.bundle.schema import SpacePrefix
from acestep_gguf.convert.checkpoint import qwen2_files, sentencepiece
from acestep_gguf.convert.checkpoint.folder import CheckpointFolder
from acestep_gguf.convert.checkpoint.tekken_merges import check_tekken
from acestep_gguf.errors import CheckpointError, UnsupportedModelError
from acestep_gguf.llama import tekken

TOKENIZER_FILE: Final = "tokenizer.json"

# The split patterns that llama.cpp knows, and its names for them (tokenizer.ggml.pre).
PRE_TOKENIZERS: Final = {
    qwen2_files.SPLIT: "qwen2",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+": "llama-bpe",
    tekken.SPLIT: tekken.NAME,
}
# Those with which a word that is a token becomes that token, whatever the merges make of it.
IGNORE_MERGES: Final = ("llama-bpe", tekken.NAME)

# Options that llama.cpp's tokenizers do not know, or that go with the pre-tokenizer there.
REFUSED_OPTIONS: Final = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What GGUF's ``tokenizer.ggml.*`` holds; ``control`` and ``user_defined`` are text → id.

    ``model`` "gpt2" is byte-level BPE, and has ``merges``; "llama" is SentencePiece's, and has ``scores``.
    ``bos`` is the token that the tokenizer puts before a prompt.
    """

    model: Literal["gpt2", "llama"]
    pre: str
    tokens: list[str]
    ids: dict[str, int]
    types: list[int]
    merges: list[str]
    scores: list[float]
    control: dict[str, int]
    user_defined: dict[str, int]
    normalizer: Literal["NFC"] | None
    space_prefix: SpacePrefix
    bos: str | None

    def id(self, token: str | None) -> int | None:
        """A token's id, None when there is no such token."""
        return None if token is None else self.ids.get(token)

    def with_control_tokens(self, token_ids: Collection[int]) -> Self:
        """The same, but these are control tokens, whatever tokenizer.json says."""
        types = self.types.copy()
        for token_id in token_ids:
            types[token_id] = TokenType.CONTROL
        return replace(
            self,
            types=types,
            control=self.control | {self.tokens[token_id]: token_id for token_id in token_ids},
            user_defined={
                text: token_id for text, token_id in self.user_defined.items() if token_id not in token_ids
            },
        )


def read_tokenizer(folder: CheckpointFolder) -> dict[str, Any]:
    """tokenizer.json, or what the older files of Qwen2's tokenizer say.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    raw = folder.read_json(TOKENIZER_FILE)
    if raw is None:
        raw = qwen2_files.tokenizer_from_files(folder)
    if raw is None:
        raise CheckpointError(f"{folder.path} has no {TOKENIZER_FILE}: save the tokenizer as a fast one.")
    return raw


def added_token_id(tokenizer: Mapping[str, Any], text: str) -> int:
    """The id of the added token ``text``.

    Raises:
        CheckpointError: there is no such token.
    """
    for added in _added_tokens(tokenizer):
        if added.content == text:
            return added.id
    raise CheckpointError(f"the tokenizer has no token {text}: get the files of one model.")


def read_vocabulary(raw: Mapping[str, Any], vocab_size: int, image_token_id: int | None) -> Vocabulary:
    """The tokenizer ``raw``; rows of the embeddings beyond its tokens are unused tokens, as in llama.cpp.

    The image placeholder is a control token whatever tokenizer.json says: text that a user typed must not
    become one.

    Raises:
        CheckpointError: missing, or it contradicts itself or ``vocab_size``.
        UnsupportedModelError: a tokenizer that llama.cpp would not follow exactly.
    """
    model = raw.get("model")
    if not isinstance(model, dict):
        raise _damaged("it has no model")
    is_sentencepiece = bool(model.get("byte_fallback"))
    _check_model(model, (*REFUSED_OPTIONS, "ignore_merges" if is_sentencepiece else "unk_token"))

    tokens: list[str | None] = [None] * vocab_size
    types = [int(TokenType.UNUSED)] * vocab_size
    for token, token_id in _token_ids(model.get("vocab")).items():
        _put(tokens, token_id, token)
        is_byte = is_sentencepiece and token in sentencepiece.BYTE_TOKENS
        types[token_id] = TokenType.BYTE if is_byte else TokenType.NORMAL
    control: dict[str, int] = {}
    user_defined: dict[str, int] = {}
    for added in _added_tokens(raw):
        _put(tokens, added.id, added.content)
        is_control = added.special or added.id == image_token_id
        types[added.id] = TokenType.CONTROL if is_control else TokenType.USER_DEFINED
        (control if is_control else user_defined)[added.content] = added.id
    if image_token_id is not None and image_token_id not in control.values():
        raise CheckpointError(
            f"the image token {image_token_id} of config.json is not an added token of the tokenizer: "
            "get the files of one model."
        )

    texts = [f"[PAD{token_id}]" if token is None else token for token_id, token in enumerate(tokens)]
    ids = {text: token_id for token_id, text in enumerate(texts)}
    if len(ids) != len(texts) or any("\0" in text for text in texts):
        raise _damaged("two ids have the same token, or one has a NUL character")
    vocabulary = Vocabulary(
        model="gpt2",
        pre="",
        tokens=texts,
        ids=ids,
        types=types,
        merges=_merges(model.get("merges"), ids.keys()),
        scores=[],
        control=control,
        user_defined=user_defined,
        normalizer=None,
        space_prefix="never",
        bos=_bos(raw.get("post_processor"), control),
    )
    return (_as_sentencepiece if is_sentencepiece else _as_byte_level)(vocabulary, raw)


def _as_byte_level(vocabulary: Vocabulary, raw: Mapping[str, Any]) -> Vocabulary:
    pre, ignores_merges = _pre_tokenizer(raw.get("pre_tokenizer")), bool(raw["model"].get("ignore_merges"))
    if ignores_merges != (pre in IGNORE_MERGES):
        raise UnsupportedModelError(
            f"the tokenizer's ignore_merges is {ignores_merges}, that of llama.cpp's {pre} is not."
        )
    if pre == tekken.NAME:
        check_tekken(vocabulary.tokens, vocabulary.types, vocabulary.merges)
    elif ignores_merges:
        _check_no_added_word(vocabulary, raw["model"]["vocab"].keys())
    return replace(vocabulary, pre=pre, normalizer=_normalizer(raw.get("normalizer")))


def _check_no_added_word(vocabulary: Vocabulary, learnt: Set[str]) -> None:
    """Refuse added tokens that may be one word: llama.cpp makes them of text, the tokenizer does not.

    Where letters or digits are followed by something else at the end, there are two words at least.
    """
    for token in (*vocabulary.control, *vocabulary.user_defined):
        is_split = any(map(str.isalnum, token)) and not token[-1].isalnum() and not token[-1].isspace()
        if token not in learnt and not is_split:
            raise UnsupportedModelError(f"llama.cpp would make the added token {token!r} of plain text.")


def _as_sentencepiece(vocabulary: Vocabulary, raw: Mapping[str, Any]) -> Vocabulary:
    """The same vocabulary as SentencePiece's: with scores instead of merges."""
    sentencepiece.check_bytes(vocabulary.ids.keys())
    return replace(
        vocabulary,
        model="llama",
        pre="default",
        merges=[],
        scores=sentencepiece.scores(vocabulary.tokens, vocabulary.types, vocabulary.merges),
        space_prefix=sentencepiece.space_prefix(raw.get("normalizer"), raw.get("pre_tokenizer")),
    )


def _check_model(model: Mapping[str, Any], refused_options: Collection[str]) -> None:
    if model.get("type", "BPE") != "BPE":
        raise UnsupportedModelError(f"the tokenizer is {model['type']}: only BPE is supported.")
    for option in refused_options:
        if model.get(option):
            raise UnsupportedModelError(
                f"the tokenizer's BPE has {option}: only Qwen2's, Llama's, Llama 3's, SmolLM's and "
                "Tekken's are supported."
            )


def _bos(raw: Any, control: Mapping[str, int]) -> str | None:
    """The token that the tokenizer's post-processor puts before a text."""
    match raw:
        case None | {"type": "ByteLevel"} | {"type": "TemplateProcessing", "single": [{"Sequence": _}]}:
            return None
        case {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": str(bos)}}, {"Sequence": _}],
        } if bos in control:
            return bos
        case {"type": "Sequence", "processors": [{"type": "ByteLevel"}, dict(template)]}:
            return _bos(template, control)
    raise UnsupportedModelError(
        "the tokenizer's post-processor does more than put a special token before a text: not supported."
    )


def _token_ids(vocab: Any) -> dict[str, int]:
    if not isinstance(vocab, dict) or not all(type(token_id) is int for token_id in vocab.values()):
        raise _damaged("its vocab does not map tokens to ids")
    if len(set(vocab.values())) != len(vocab):
        raise _damaged("two tokens have the same id")
    return vocab


@dataclass(frozen=True, slots=True)
class _AddedToken:
    id: int
    content: str
    special: bool


def _added_tokens(raw: Mapping[str, Any]) -> list[_AddedToken]:
    added = []
    for entry in raw.get("added_tokens") or []:
        match entry:
            case {"id": int(token_id), "content": str(content), "special": bool(special)} if content:
                added.append(_AddedToken(token_id, content, special))
            case _:
                raise _damaged("an added token has no id, content or special flag")
        if any(entry.get(flag) for flag in ("lstrip", "rstrip", "single_word")):
            raise UnsupportedModelError(f"added token {content!r} strips spaces or matches whole words only.")
    return added


def _put(tokens: list[str | None], token_id: int, token: str) -> None:
    if not 0 <= token_id < len(tokens):
        raise CheckpointError(
            f"token {token!r} has the id {token_id}, config.json has {len(tokens)} rows only."
        )
    if tokens[token_id] not in (None, token):
        raise _damaged(f"{tokens[token_id]!r} and {token!r} have the same id")
    tokens[token_id] = token


def _merges(raw: Any, tokens: Set[str]) -> list[str]:
    """Merges as "left right"; tokenizers wrote them so, and writes them as pairs since 0.20."""
    if not isinstance(raw, list):
        raise _damaged("it has no merges")
    merges = []
    for merge in raw:
        match merge.split(" ") if isinstance(merge, str) else merge:
            case [str(left), str(right)] if left and right and " " not in left + right:
                merges.append(f"{left} {right}")
            case _:
                raise _damaged(f"{merge!r} is not a pair of tokens to merge")
        if not {left, right, left + right} <= tokens:
            raise _damaged(f"merge {merge!r} is not about tokens of its vocab")
    return merges


def _pre_tokenizer(raw: Any) -> str:
    match raw:
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        } if regex in PRE_TOKENIZERS:
            return PRE_TOKENIZERS[regex]
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
            ],
        }:
            return "smollm"
    raise UnsupportedModelError(
        "the tokenizer's pre-tokenizer is not Qwen2's, Llama 3's, SmolLM's or Tekken's: only these are "
        "supported."
    )


def _normalizer(raw: Any) -> Literal["NFC"] | None:
    match raw:
        case None | {"type": "Sequence", "normalizers": []}:
            return None
        case {"type": "NFC"} | {"type": "Sequence", "normalizers": [{"type": "NFC"}]}:
            return "NFC"
    kind = raw.get("type") if isinstance(raw, dict) else raw
    raise UnsupportedModelError(f"the tokenizer's normalizer is {kind}: only NFC or none is supported.")


def _damaged(problem: str) -> CheckpointError:
    return CheckpointError(f"{TOKENIZER_FILE} is damaged ({problem}): get the file again.")
