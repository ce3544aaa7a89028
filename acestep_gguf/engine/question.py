"""What is asked: a question or messages, pictures, and how the answer is to be written."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from acestep_gguf.errors import UsageError
from acestep_gguf.options import AnswerOptions
from acestep_gguf.prompt.messages import Message, Turn, parse_messages, user_message
from acestep_gguf.vision.encoder import PictureSource


@dataclass(frozen=True, eq=False)
class Question:
    """A question that an ``AceStep`` can be asked.

    Args:
        prompt: a question, or messages (see messages.py).
        images: pictures, each a path, bytes, a PIL image, an EmbedsFile or what ``prepare_image`` gave; with
            messages, for image parts without one.
        options: how the answer is written.

    Raises:
        UsageError: ``images`` is no list.
    """

    prompt: str | Sequence[Message]
    images: Sequence[PictureSource] = ()
    options: AnswerOptions = field(default_factory=AnswerOptions)

    def __post_init__(self) -> None:
        if not isinstance(self.images, list | tuple):
            raise UsageError("images is no list: put even a single one into a list.")

    @cached_property
    def turns(self) -> tuple[Turn, ...]:
        """The messages, checked, each with its pictures; as they are when this is first looked at.

        Raises:
            PromptError: they are not messages, or there are more or fewer pictures than places for them.
        """
        if isinstance(self.prompt, str):
            return parse_messages([user_message(self.prompt, self.images)])
        return parse_messages(self.prompt, self.images)

    @property
    def pictures(self) -> list[PictureSource]:
        """All pictures of the messages, in their order; errors are those of ``turns``."""
        return [image for turn in self.turns for image in turn.images]
