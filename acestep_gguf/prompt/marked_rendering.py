"""A chat template rendered so that it is known who wrote what.

Only text of the template may become a control token, never text of a message. A rendered template does not
show where each text is from. So it is rendered twice, the second time with a mark in the place of each text,
and both renderings must be the same once the texts are back in the places of their marks.
"""

import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

from jinja2.exceptions import TemplateError

from acestep_gguf.bundle.schema import PromptSpec
from acestep_gguf.errors import PromptError, TemplateLimitError
from acestep_gguf.prompt.chat_template import ChatTemplate
from acestep_gguf.prompt.messages import Turn


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a rendered template.

    Args:
        text: never empty.
        source: the template, which may write control tokens, or a message.
        is_control_token: whether ``text`` is one, or the place of an image.
        answer_tokens: what the model wrote, if ``text`` is an answer whose tokens are known.
    """

    text: str
    source: Literal["template", "message"]
    is_control_token: bool = False
    answer_tokens: tuple[int, ...] = ()


class MarkedRenderer:
    """Renders messages with the chat template of one model.

    Raises:
        PromptError: the template is not valid.
    """

    def __init__(self, spec: PromptSpec) -> None:
        self._template = ChatTemplate(spec.chat_template, spec.template_tokens)
        self._image_token = spec.image_token
        self._control_tokens = any_of([spec.image_token or "", *spec.control_tokens])

    def render(self, turns: Sequence[Turn]) -> list[Piece]:
        """The pieces of the rendered template.

        Templates differ in the form of content that they take: the first that works is used.

        Raises:
            PromptError: none works.
            TemplateLimitError: the template was stopped.
        """
        problems: list[PromptError] = []
        # The tokens of an answer do not fit a template that trims its white space.
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

    def _render(self, turns: Sequence[Turn], content: Callable[[Turn], Any]) -> list[Piece]:
        marks = _Marks()
        marked_turns = [
            replace(turn, parts=tuple(marks.mark(part, turn.answer_tokens) for part in turn.parts))
            for turn in turns
        ]
        plain, marked = (
            self._template.render([{"role": turn.role, "content": content(turn)} for turn in version])
            for version in (turns, marked_turns)
        )
        pieces = [fragment for piece in marks.split(marked) for fragment in self._split(piece)]
        if "".join(piece.text for piece in pieces) != plain:
            raise PromptError("this model's chat template alters messages: it cannot be used safely.")
        if marks.unseen:
            raise PromptError("this model's chat template leaves out a message: give others or reorder them.")
        n_images = sum(len(turn.images) for turn in turns)
        n_places = sum(piece.is_control_token and piece.text == self._image_token for piece in pieces)
        if n_places != n_images:
            raise PromptError(f"this model's chat template makes {n_places} places for {n_images} images.")
        return pieces

    def _as_string(self, turn: Turn) -> str:
        """For templates that know only strings: images stand before the text."""
        return f"{self._image_token}\n" * len(turn.images) + turn.text

    def _split(self, piece: Piece) -> Iterator[Piece]:
        """A piece of the template, cut at control tokens; a text of a message, whole."""
        end = 0
        for match in self._control_tokens.finditer(piece.text) if piece.source == "template" else ():
            if match.start() > end:
                yield replace(piece, text=piece.text[end : match.start()])
            yield replace(piece, text=match.group(), is_control_token=True)
            end = match.end()
        if end < len(piece.text):
            yield replace(piece, text=piece.text[end:])


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern for the longest of ``texts`` at each place; without texts, one that matches nowhere."""
    longest_first = sorted(filter(None, texts), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


class _Marks:
    """Marks for the texts of messages. Nobody can write one, because they hold a random number.

    White space at the ends of a text stays outside its mark, so that a template which trims does the same to
    both renderings.
    """

    def __init__(self) -> None:
        self._nonce = secrets.token_hex(16)
        self._texts: list[Piece] = []
        self.unseen: set[int] = set()

    def mark(self, part: Any, answer_tokens: tuple[int, ...]) -> Any:
        """A text with a mark in the place of what is between its white space; an image as it is.

        The mark of an answer whose tokens are known stands for all of it.
        """
        if not isinstance(part, str) or not (core := part if answer_tokens else part.strip()):
            return part
        number = len(self._texts)
        self._texts.append(Piece(core, "message", answer_tokens=answer_tokens))
        self.unseen.add(number)
        start = part.index(core)
        return f"{part[:start]}\ue000{self._nonce}.{number}\ue001{part[start + len(core) :]}"

    def split(self, rendered: str) -> Iterator[Piece]:
        """The rendering with the texts back in the places of their marks."""
        pieces = re.split(f"\ue000{self._nonce}\\.(\\d+)\ue001", rendered)
        for index, piece in enumerate(pieces):
            if index % 2 == 0:
                yield Piece(piece, "template")
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
    """Parts that a template may look into but not write as a Python list, which it would do by mistake."""

    __str__ = __repr__ = __format__ = _refuse


class _Part(dict[str, str]):
    """One part, likewise."""

    __str__ = __repr__ = __format__ = _refuse
