"""Messages become a prompt: spans of tokens and of images, in the order in which the decoder reads them."""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from acestep_gguf.bundle.schema import NO_TOWER, PromptSpec, SpacePrefix
from acestep_gguf.errors import BundleError, PromptError
from acestep_gguf.prompt.marked_rendering import MarkedRenderer, Piece, any_of
from acestep_gguf.prompt.messages import Message, Turn, parse_messages
from acestep_gguf.prompt.segments import ImageInput, Segment


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """A stretch of text between pictures, as tokens."""

    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """The place of an image, by its number in the prompt's ``images``."""

    image: int


Span = TokenSpan | ImageSpan


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the decoder reads; ``images`` are as the caller gave them, in the order of their spans."""

    spans: tuple[Span, ...]
    images: tuple[Any, ...]

    @property
    def text_tokens(self) -> list[int]:
        """The tokens of all text, without the pictures."""
        return [token for span in self.spans if isinstance(span, TokenSpan) for token in span.tokens]

    def segments(self, images: Sequence[ImageInput]) -> list[Segment]:
        """The prompt as a decoder reads it, with ``images`` in the places of its images."""
        return [images[span.image] if isinstance(span, ImageSpan) else span.tokens for span in self.spans]


# What stands before a text; "nothing" does at the beginning of the prompt.
Before = Literal["nothing", "control token", "image", "answer"]

# After what a text gets a space at its beginning, by PromptSpec.space_prefix.
SPACED: Final[Mapping[SpacePrefix, tuple[Before, ...]]] = {
    "never": (),
    "first": ("nothing",),
    "always": ("nothing", "control token", "image"),
    "prepend": ("nothing", "control token", "image"),
}
# SentencePiece's two ways to write a space.
SPACES: Final = (" ", "\u2581")
# What gets a space behind a picture with image_around, as in transformers' Idefics2Processor.
WORD: Final = re.compile(r"[^\s<]")


class PromptBuilder:
    """Turns messages into prompts for one model.

    Args:
        spec: template and tokens of the bundle.
        tokenize: token ids of a text, nothing of which becomes a control token (llama.Model.tokenize).
        token_bytes: what a token spells (llama.Model.token_bytes).

    Raises:
        PromptError: the bundle's chat template is not valid.
    """

    def __init__(
        self, spec: PromptSpec, tokenize: Callable[[str], list[int]], token_bytes: Callable[[int], bytes]
    ) -> None:
        self._spec = spec
        self._tokenize = tokenize
        self._token_bytes = token_bytes
        self._renderer = MarkedRenderer(spec)
        self._user_defined = any_of(spec.user_defined_tokens)
        self._control_ids = frozenset(spec.control_tokens.values())

    def build(self, messages: Sequence[Message]) -> Prompt:
        """The prompt that asks for an answer to ``messages`` (see messages.py).

        Raises:
            PromptError: they are malformed; or what ``build_parsed`` raises.
        """
        return self.build_parsed(parse_messages(messages))

    def build_parsed(self, turns: Sequence[Turn], beginning: str = "") -> Prompt:
        """The same for messages that ``parse_messages`` has checked already.

        Args:
            turns: the messages.
            beginning: of the answer. It is tokenized together with the template's text before it, as any
                text between two control tokens is.

        Raises:
            PromptError: the chat template does not take them, or they have images and the model has no vision
                tower.
        """
        if self._spec.image_token is None and any(turn.images for turn in turns):
            raise PromptError(NO_TOWER)
        spans = self._spans(self._renderer.render(turns), beginning)
        return Prompt(spans, tuple(image for turn in turns for image in turn.images))

    def _spans(self, pieces: Sequence[Piece], beginning: str) -> tuple[Span, ...]:
        """Text between two control tokens is tokenized as one string, whoever wrote its parts.

        An answer keeps the tokens in which the model wrote it: its text could be tokenized in others.
        """
        spans: list[Span] = []
        tokens = self._beginning(pieces)
        text = ""
        before: Before = "nothing"
        n_images = 0
        for piece in pieces:
            spelled = self._spelled(piece.answer_tokens)
            if spelled and spelled.endswith(piece.text) and (text + piece.text).endswith(spelled):
                # SentencePiece writes an answer's first space, which is the template's in its rendering.
                text = text.removesuffix(spelled.removesuffix(piece.text))
                tokens += [*self._text_tokens(text, before), *piece.answer_tokens]
                text, before = "", "answer"
            elif not piece.is_control_token:
                text += piece.text
            else:
                tokens += self._text_tokens(text, before)
                text, before = "", "control token"
                if piece.text == self._spec.image_token:
                    around = self._control(self._spec.image_around)
                    tokens += self._control(self._spec.image_begin)
                    tokens += around if tokens[-1:] != around else []
                    spans += [TokenSpan(tuple(tokens)), ImageSpan(n_images)]
                    tokens, n_images = self._control(self._spec.image_end) + around, n_images + 1
                    before = "image"
                else:
                    tokens.append(self._spec.control_tokens[piece.text])
        spans.append(TokenSpan(tuple(tokens + self._text_tokens(text + beginning, before))))
        return tuple(span for span in spans if span != TokenSpan(()))

    def _beginning(self, pieces: Sequence[Piece]) -> list[int]:
        """The token that begins every prompt, unless the template has written it."""
        bos = self._spec.bos_token
        if bos is None or pieces[:1] == [Piece(bos, "template", is_control_token=True)]:
            return []
        return [self._spec.control_tokens[bos]]

    def _control(self, token: str | None) -> list[int]:
        return [] if token is None else [self._spec.control_tokens[token]]

    def _spelled(self, tokens: tuple[int, ...]) -> str:
        """The text of an answer's tokens, or nothing if there are control tokens among them.

        A model can write control tokens into its answer. Neither its text nor the next prompt has them.
        """
        if not self._control_ids.isdisjoint(tokens):
            return ""
        return b"".join(map(self._token_bytes, tokens)).decode("utf-8", "replace")

    def _text_tokens(self, text: str, before: Before = "nothing") -> list[int]:
        """Token ids of a text in which added tokens that are not special may stand.

        As in transformers, the text is first cut at them. llama.cpp does not find all of them in a text: some
        it takes for control tokens, by their names.
        """
        tokens: list[int] = []
        if before == "image" and self._spaces_words_behind_images and WORD.match(text):
            text = f" {text}"
        end = 0
        for match in self._user_defined.finditer(text):
            tokens += self._plain_tokens(text[end : match.start()], before)
            tokens.append(self._spec.user_defined_tokens[match.group()])
            end, before = match.end(), "control token"
        return tokens + self._plain_tokens(text[end:], before)

    @property
    def _spaces_words_behind_images(self) -> bool:
        """Not where any text gets a space anyway, since both would be two."""
        return self._spec.image_around is not None and self._spec.space_prefix != "prepend"

    def _plain_tokens(self, text: str, before: Before) -> list[int]:
        if not text:
            return []
        if self._spec.normalizer is not None:
            text = unicodedata.normalize(self._spec.normalizer, text)
        scheme = self._spec.space_prefix
        if before in SPACED[scheme] and (scheme == "prepend" or not text.startswith(SPACES)):
            text = f" {text}"
        tokens = self._tokenize(text)
        if not self._control_ids.isdisjoint(tokens):
            raise BundleError("the decoder makes control tokens of plain text: convert the checkpoint again.")
        return tokens
