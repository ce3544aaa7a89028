"""The history of a chat, and the JSON file that it is saved in.

The file holds the path and the SHA-256 of each picture, not the picture, so that a changed one is noticed.
"""

import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import msgspec

from acestep_gguf.answer import Answer
from acestep_gguf.errors import ConversationError
from acestep_gguf.prompt.messages import MAX_MESSAGES, MAX_PARTS, Message, user_message
from acestep_gguf.storage.atomic_file import PRIVATE, write_atomically

FORMAT: Final = "acestep-gguf conversation 1"
MAX_FILE_BYTES: Final = 16 * 2**20

AttachmentKind = Literal["picture", "embeds"]
Hash = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


@dataclass(frozen=True, slots=True)
class Attachment:
    """A picture of a message, or the file of its image embeds.

    Args:
        kind: which of the two.
        path: of the file, absolute.
        sha256: of what is in it.
        source: what the engine takes for it.
    """

    kind: AttachmentKind
    path: str
    sha256: str
    source: Any


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question and its answer, which is plain text if it was loaded from a file."""

    question: str
    attachments: tuple[Attachment, ...]
    answer: Answer | str


class SavedAttachment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An attachment as a file has it."""

    kind: AttachmentKind
    path: str
    sha256: Hash


class SavedExchange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An exchange as a file has it."""

    question: str
    attachments: Annotated[tuple[SavedAttachment, ...], msgspec.Meta(max_length=MAX_PARTS - 1)]
    answer: str


class SavedConversation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole content of a file."""

    format: Literal["acestep-gguf conversation 1"] = FORMAT
    system_prompt: str | None
    exchanges: Annotated[tuple[SavedExchange, ...], msgspec.Meta(max_length=MAX_MESSAGES // 2 - 1)]


@dataclass(slots=True)
class Conversation:
    """What was said, from the beginning."""

    system_prompt: str | None = None
    exchanges: list[Exchange] = field(default_factory=list)

    def messages(self, question: str, attachments: Sequence[Attachment]) -> list[Message]:
        """All messages so far, and one more question about ``attachments``."""
        messages: list[Message] = []
        if self.system_prompt is not None:
            messages.append({"role": "system", "content": self.system_prompt})
        for past in self.exchanges:
            messages.append(_message(past.question, past.attachments))
            messages.append({"role": "assistant", "content": past.answer})
        return [*messages, _message(question, attachments)]

    def save(self, path: Path) -> None:
        """Write the conversation to ``path``, which must be new or another saved conversation.

        Nobody but its owner may read it.

        Raises:
            ConversationError: it is something else, or cannot be written.
        """
        saved = SavedConversation(
            system_prompt=self.system_prompt, exchanges=tuple(map(_saved, self.exchanges))
        )
        try:
            if path.exists():
                check_may_be_replaced(path)
            data = msgspec.json.format(msgspec.json.encode(saved), indent=1)
            write_atomically(path, [data, b"\n"], mode=PRIVATE)
        except (OSError, ValueError) as error:  # ValueError: a picture's path that is not UTF-8
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConversationError(f"{path} cannot be written ({reason}): give another path.") from error

    @classmethod
    def load(cls, path: Path, attach: Callable[[AttachmentKind, Path], Attachment]) -> Self:
        """Read a saved conversation; ``attach`` opens its pictures.

        Raises:
            ConversationError: the file is missing, damaged or of another kind, or a picture has changed.
            ImageError: a picture cannot be read.
        """
        saved = _read(path)
        exchanges = []
        for past in saved.exchanges:
            attachments = tuple(attach(one.kind, Path(one.path)) for one in past.attachments)
            for now, then in zip(attachments, past.attachments, strict=True):
                if now.sha256 != then.sha256:
                    raise ConversationError(
                        f"{then.path} has changed since this conversation was saved: put the old file back."
                    )
            exchanges.append(Exchange(past.question, attachments, past.answer))
        return cls(saved.system_prompt, exchanges)


def _message(question: str, attachments: Sequence[Attachment]) -> Message:
    return user_message(question, [one.source for one in attachments])


def _saved(past: Exchange) -> SavedExchange:
    return SavedExchange(
        past.question,
        tuple(SavedAttachment(one.kind, one.path, one.sha256) for one in past.attachments),
        past.answer if isinstance(past.answer, str) else past.answer.text,
    )


def check_may_be_replaced(path: Path) -> None:
    """Refuse to write a conversation over something else.

    Raises:
        ConversationError: there is something else.
    """
    try:
        _read(path)
    except ConversationError as error:
        raise ConversationError(
            f"{path} exists and is not a saved conversation: give another path."
        ) from error


def _read(path: Path) -> SavedConversation:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its other end
            raise ConversationError(f"{path} is not a file: give one that /save wrote.")
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConversationError(f"{path} cannot be read ({reason}): give a file that /save wrote.") from error
    if len(content) > MAX_FILE_BYTES:
        raise ConversationError(
            f"{path} is longer than {MAX_FILE_BYTES >> 20} MiB: it is not a saved conversation."
        )
    try:
        return msgspec.json.decode(content, type=SavedConversation)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConversationError(
            f"{path} is not a saved conversation ({error}): give a file that /save wrote."
        ) from error
