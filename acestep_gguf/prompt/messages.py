"""Messages as callers give them, checked: a list of ``{"role": …, "content": …}``.

A role is "system", "user" or "assistant". Content is a string, or a list of text and image parts as Hugging
Face's and OpenAI's clients write them: ``{"type": "text", "text": …}``, ``{"type": "image", "image": …}`` (or
``path``, ``url``, ``base64``), ``{"type": "image_url", "image_url": {"url": …}}``. An image part without a
picture takes the next one of the caller's list. The content of an assistant's message may be the ``Answer``
that was given, so that its tokens are known.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from acestep_gguf.answer import Answer
from acestep_gguf.errors import PromptError
from acestep_gguf.prompt.image_source import image_source

Message = Mapping[str, Any]

ROLES: Final = ("system", "user", "assistant")
MAX_MESSAGES: Final = 10_000
MAX_PARTS: Final = 1_000


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image in a message, as the caller gave it."""

    image: Any


@dataclass(frozen=True, slots=True)
class Turn:
    """One message.

    ``is_string`` tells whether its content was a plain string, ``answer_tokens`` which tokens the model wrote
    if it is an answer.
    """

    role: str
    parts: tuple[str | ImagePart, ...]
    is_string: bool
    answer_tokens: tuple[int, ...] = ()

    @property
    def images(self) -> tuple[Any, ...]:
        """The images of this message."""
        return tuple(part.image for part in self.parts if isinstance(part, ImagePart))

    @property
    def text(self) -> str:
        """All text of this message."""
        return "".join(part for part in self.parts if isinstance(part, str))


def user_message(text: str, images: Sequence[Any]) -> Message:
    """One question about ``images``, which come first."""
    parts = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def parse_messages(messages: Sequence[Message], images: Sequence[Any] = ()) -> tuple[Turn, ...]:
    """Check messages, and give ``images`` to the image parts that have none.

    Raises:
        PromptError: not messages of the described kind, or another number of images than places for them.
    """
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
        raise PromptError('messages must be a list of {"role": …, "content": …}.')
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise PromptError(f"{len(messages)} messages were given: give 1 to {MAX_MESSAGES}.")
    waiting = iter(images)
    turns = tuple(_turn(message, waiting) for message in messages)
    if (left := len(list(waiting))) > 0:
        raise PromptError(f"{left} of {len(images)} images have no image part in the messages: add them.")
    return turns


def _turn(message: Message, waiting: Iterator[Any]) -> Turn:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise PromptError('a message must be {"role": …, "content": …}.')
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise PromptError(f"a message has the role {repr(role)[:40]}: use {', '.join(ROLES)}.")
    if isinstance(content, Answer):
        return Turn(role, (_checked(content.text),), is_string=True, answer_tokens=tuple(content.tokens))
    if isinstance(content, str):
        return Turn(role, (_checked(content),), is_string=True)
    if not isinstance(content, list | tuple) or len(content) > MAX_PARTS:
        raise PromptError(f"the content of a message must be a string or a list of up to {MAX_PARTS} parts.")
    return Turn(role, tuple(_part(part, waiting) for part in content), is_string=False)


def _part(part: Any, waiting: Iterator[Any]) -> str | ImagePart:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return _checked(part["text"])
    if kind not in ("image", "image_url"):
        raise PromptError('a part must be {"type": "text", "text": …} or {"type": "image", "image": …}.')
    image = image_source(part)
    if image is None and (image := next(waiting, None)) is None:
        raise PromptError("there are more image parts without a picture than images: give one for each.")
    return ImagePart(image)


def _checked(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(f"a text is not valid Unicode ({error.reason}): decode it as UTF-8.") from error
    return text
