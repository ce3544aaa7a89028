"""Messages become a prompt: spans of token ids and of images, in the order in which the decoder reads them.

Who wrote what decides what becomes a control token: only text of the chat template can, never text of a user.
A rendered template has lost that, so it is rendered twice, once with each text of the messages replaced by a
mark, and the plain rendering must be the same with the marks put back.
"""

import re
import secrets
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Final, Literal, NoReturn

from jinja2.exceptions import TemplateError

from acestep_gguf.bundle.schema import NO_TOWER, PromptSpec, SpacePrefix
from acestep_gguf.errors import BundleError, PromptError, TemplateLimitError
from acestep_gguf.prompt.chat_template import ChatTemplate
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
        """The same as a decoder reads it, to which the images are ``images``."""
        return [images[span.image] if isinstance(span, ImageSpan) else span.tokens for span in self.spans]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A piece of a rendered template.

    ``owned`` tells whether the template wrote it, not a user; ``answer_tokens`` are what the model wrote it
    as, if it is an answer.
    """

    text: str
    owned: bool
    answer_tokens: tuple[int, ...] = ()


# What stands before a text: nothing at the beginning of the prompt.
Before = Literal["nothing", "control token", "answer"]

# What text gets a space after, by PromptSpec.space_prefix; and SentencePiece's own two ways to write one.
SPACED: Final[Mapping[SpacePrefix, tuple[Before, ...]]] = {
    "never": (),
    "first": ("nothing",),
    "always": ("nothing", "control token"),
    "prepend": ("nothing", "control token"),
}
SPACES: Final = (" ", "\u2581")


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
        self._template = ChatTemplate(spec.chat_template, spec.template_tokens)
        self._control = _any_of([spec.image_token or "", *spec.control_tokens])
        self._user_defined = _any_of(spec.user_defined_tokens)
        self._control_ids = frozenset(spec.control_tokens.values())

    def build(self, messages: Sequence[Message], images: Sequence[Any] = ()) -> Prompt:
        """The prompt that asks for an answer to ``messages`` (see messages.py).

        Raises:
            PromptError: they are not sound messages, the chat template does not take them, or they have
                images and the model has no vision tower.
        """
        turns = parse_messages(messages, images)
        if self._spec.image_token is None and any(turn.images for turn in turns):
            raise PromptError(NO_TOWER)
        spans = self._spans(self.render(turns))
        return Prompt(spans, tuple(image for turn in turns for image in turn.images))

    def render(self, turns: Sequence[Turn]) -> list[Rendered]:
        """The rendered template in pieces, with contents in the first form that the template takes.

        Raises:
            PromptError: it takes none.
        """
        problems: list[PromptError] = []
        # Tokens of an answer are of no use where the template trims its white space.
        without_tokens = [replace(turn, answer_tokens=()) for turn in turns]
        for content in (_as_given, _as_parts, self._as_string):
            for version in (turns, without_tokens):
                try:
                    return self._render(version, content)
                except TemplateLimitError:
                    raise
                except PromptError as problem:
                    problems.append(problem)
        raise problems[0]

    def _render(self, turns: Sequence[Turn], content: Callable[[Turn], Any]) -> list[Rendered]:
        marks = _Marks()
        marked_turns = [
            replace(turn, parts=tuple(marks.mark(part, turn.answer_tokens) for part in turn.parts))
            for turn in turns
        ]
        plain, marked = (
            self._template.render([{"role": turn.role, "content": content(turn)} for turn in version])
            for version in (turns, marked_turns)
        )
        pieces = list(marks.split(marked))
        if "".join(piece.text for piece in pieces) != plain:
            raise PromptError("this model's chat template alters messages: none can be put to it safely.")
        if marks.unseen:
            raise PromptError("this model's chat template leaves out a message: give others or reorder them.")
        n_images = sum(len(turn.images) for turn in turns)
        fragments = chain.from_iterable(map(self._split, pieces))
        n_places = sum(text == self._spec.image_token for text, control in fragments if control)
        if n_places != n_images:
            raise PromptError(f"this model's chat template makes {n_places} places for {n_images} images.")
        return pieces

    def _as_string(self, turn: Turn) -> str:
        """For templates that know only strings: images stand before the text."""
        return f"{self._spec.image_token}\n" * len(turn.images) + turn.text

    def _split(self, piece: Rendered) -> Iterator[tuple[str, bool]]:
        """Texts, and whether each is a control token: they are looked for in what the template owns only."""
        end = 0
        for match in self._control.finditer(piece.text) if piece.owned else ():
            yield piece.text[end : match.start()], False
            yield match.group(), True
            end = match.end()
        yield piece.text[end:], False

    def _spans(self, pieces: Sequence[Rendered]) -> tuple[Span, ...]:
        """Text between two control tokens is tokenized as one string, whoever wrote its parts.

        An answer keeps the tokens that the model wrote it in: tokenizing its text can give others.
        """
        spans: list[Span] = []
        tokens = self._beginning(pieces)
        text = ""
        before: Before = "nothing"
        n_images = 0
        for piece in pieces:
            written = self._spelled(piece.answer_tokens)
            if written.endswith(piece.text) and (text + piece.text).endswith(written) and written:
                # SentencePiece writes an answer's first space, where the template has it before the answer.
                text = text.removesuffix(written.removesuffix(piece.text))
                tokens += [*self._text_tokens(text, before), *piece.answer_tokens]
                text, before = "", "answer"
                continue
            for fragment, control in self._split(piece):
                if not control:
                    text += fragment
                    continue
                tokens += self._text_tokens(text, before)
                text, before = "", "control token"
                if fragment != self._spec.image_token:
                    tokens.append(self._spec.control_tokens[fragment])
                    continue
                spans += [TokenSpan(tuple(tokens)), ImageSpan(n_images)]
                tokens, n_images = [], n_images + 1
        spans.append(TokenSpan(tuple(tokens + self._text_tokens(text, before))))
        return tuple(span for span in spans if span != TokenSpan(()))

    def _beginning(self, pieces: Sequence[Rendered]) -> list[int]:
        """The token that begins every prompt, unless the template wrote it."""
        bos = self._spec.bos_token
        if bos is None or (pieces[0].owned and pieces[0].text.startswith(bos)):
            return []
        return [self._spec.control_tokens[bos]]

    def _spelled(self, tokens: tuple[int, ...]) -> str:
        """What an answer's tokens spell; nothing if there are control tokens among them."""
        if not self._control_ids.isdisjoint(tokens):
            return ""
        return b"".join(map(self._token_bytes, tokens)).decode("utf-8", "replace")

    def _text_tokens(self, text: str, before: Before = "nothing") -> list[int]:
        """As transformers does, cut at added tokens that are not special before anything else.

        llama.cpp would not know some of them in text: those whose names it takes for control tokens.
        """
        tokens: list[int] = []
        end = 0
        for match in self._user_defined.finditer(text):
            tokens += self._plain_tokens(text[end : match.start()], before)
            tokens.append(self._spec.user_defined_tokens[match.group()])
            end, before = match.end(), "control token"
        return tokens + self._plain_tokens(text[end:], before)

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


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Finds the longest of ``texts`` at the first place that has one; nothing, if there are none."""
    longest_first = sorted(filter(None, texts), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


class _Marks:
    """Stand-ins for the texts of messages; nobody can write them, since they hold a random number.

    White space at the ends of a text stays outside its mark, so that a template which trims does the same to
    both renderings.
    """

    def __init__(self) -> None:
        self._nonce = secrets.token_hex(16)
        self._texts: list[Rendered] = []
        self.unseen: set[int] = set()

    def mark(self, part: Any, answer_tokens: tuple[int, ...]) -> Any:
        """A text with a mark in the place of what is between its white space; an image as it is.

        The mark of an answer whose tokens are known stands for all of it.
        """
        if not isinstance(part, str) or not (core := part if answer_tokens else part.strip()):
            return part
        number = len(self._texts)
        self._texts.append(Rendered(core, owned=False, answer_tokens=answer_tokens))
        self.unseen.add(number)
        start = part.index(core)
        return f"{part[:start]}\ue000{self._nonce}.{number}\ue001{part[start + len(core) :]}"

    def split(self, rendered: str) -> Iterator[Rendered]:
        """The rendering with the texts put back in the place of their marks."""
        pieces = re.split(f"\ue000{self._nonce}\\.(\\d+)\ue001", rendered)
        for index, piece in enumerate(pieces):
            if index % 2 == 0:
                yield Rendered(piece, owned=True)
            else:
                self.unseen.discard(int(piece))
                yield self._texts[int(piece)]


def _as_given(turn: Turn) -> Any:
    return turn.text if turn.is_string else _as_parts(turn)


def _as_parts(turn: Turn) -> Any:
    return _Parts(
        _Part(type="text", text=part) if isinstance(part, str) else _Part(type="image") for part in turn.parts
    )


def _refuse(_: object, *__: object) -> NoReturn:
    raise TemplateError("it writes lists of parts as text")


class _Parts(list[Any]):
    """Parts that a template may look into, but not print as a Python list, which it would do by mistake."""

    __str__ = __repr__ = __format__ = _refuse


class _Part(dict[str, str]):
    """One part, the same."""

    __str__ = __repr__ = __format__ = _refuse
