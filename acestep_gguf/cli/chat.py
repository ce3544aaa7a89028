"""``acestep-gguf chat``: questions and answers in turn, about pictures that may come at any time."""

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from acestep_gguf.cli.option_groups import takes_groups
from acestep_gguf.cli.options import BundleFolder, EmbedsFiles, Images, Quiet, SystemPrompt, Verbose
from acestep_gguf.cli.status_line import StatusLine
from acestep_gguf.cli.terminal import (
    from_a_thread,
    is_terminal,
    piped_lines,
    print_chunks,
    printable,
    statistics,
    typed_lines,
)
from acestep_gguf.errors import AceStepError, ContextOverflowError, PromptError
from acestep_gguf.options import AnswerOptions, EngineOptions

if TYPE_CHECKING:
    from acestep_gguf.engine.conversation import Attachment, AttachmentKind, Conversation
    from acestep_gguf.engine.engine import AceStep


@takes_groups
def chat(
    bundle: BundleFolder,
    *,
    image: Images = None,
    embeds: EmbedsFiles = None,
    system_prompt: SystemPrompt = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    answer: AnswerOptions,
    engine: EngineOptions,
) -> None:
    """Answer one question after another.

    Pictures can come at any time: /help lists the commands.
    """
    # At a terminal, Ctrl-C stops an answer and Ctrl-D ends the chat. Elsewhere each line of standard input is
    # a question or a command; Ctrl-C ends all, and the exit code is 1 if there was an error.
    from acestep_gguf.engine.conversation import Conversation
    from acestep_gguf.engine.engine import AceStep
    from acestep_gguf.plan.report import plan_line

    with (
        StatusLine(wanted=not (quiet or verbose)) as status,
        AceStep(bundle, engine, on_progress=status.show) as model,
    ):
        status.hide()
        if not quiet:
            print(plan_line(model.plan), file=sys.stderr)
        chat = Chat(model, Conversation(system_prompt), answer, status, quiet=quiet)
        for picture in image or []:
            chat.attach("picture", picture)
        for file in embeds or []:
            chat.attach("embeds", file)
        if is_terminal():
            signal.signal(signal.SIGINT, lambda *_: chat.cancel())
            print(f"{model.bundle.name} answers. /help lists the commands, Ctrl-D ends the chat.")
            chat.talk(typed_lines())
        else:
            chat.talk(piped_lines())
            if chat.failed:
                sys.exit(1)


class Chat:
    """A conversation with a model, line by line.

    Args:
        model: what answers.
        conversation: what was said so far.
        answer_options: how each answer is written.
        status: what the model reports its progress to; it is gone while an answer is written.
        quiet: print no statistics.
    """

    def __init__(
        self,
        model: "AceStep",
        conversation: "Conversation",
        answer_options: AnswerOptions,
        status: StatusLine,
        *,
        quiet: bool = False,
    ) -> None:
        self.conversation = conversation
        self.failed = False
        self._model = model
        self._status = status
        self._quiet = quiet
        self._answer_options = replace(answer_options, exact=False)
        self._attachments: list[Attachment] = []  # to the next message
        self._is_cancelled = False
        self._ended = False

    def talk(self, lines: Iterable[str]) -> None:
        """Answer each line, or do what it commands; an error is printed and does not end the chat."""
        for line in lines:
            self._is_cancelled = False
            try:
                if line.startswith("/"):
                    self._do(line)
                elif os.path.isfile(path := _path(line.strip())):
                    raise PromptError(f"{path} is a file, not a question: write /image {path} to add it.")
                elif line.strip():
                    self._ask(line.strip())
            except ContextOverflowError as error:
                self._print_error(f"{error} Or begin anew with /reset.")
            except AceStepError as error:
                self._print_error(error)
            if self._ended:
                return

    def cancel(self) -> None:
        """End the answer that is being written, or about to be; a signal handler may call it."""
        self._is_cancelled = True
        self._model.cancel()

    def attach(self, kind: "AttachmentKind", path: Path) -> None:
        """Add a picture, all pages of a PDF, or a file of image embeds to the next message.

        Raises:
            ImageError: it cannot be read.
            MissingPackageError: it is of a format that an extra reads.
            PromptError: the model has no vision tower.
        """
        from acestep_gguf.vision.image_file import pictures_of

        paths = pictures_of(path) if kind == "picture" else [path]
        self._attachments += [self._opened(kind, path) for path in paths]

    def _opened(self, kind: "AttachmentKind", path: Path) -> "Attachment":
        import hashlib

        from acestep_gguf.engine.conversation import Attachment
        from acestep_gguf.vision.embeds_file import EmbedsFile
        from acestep_gguf.vision.image_file import read_file

        path = Path(os.path.abspath(path))
        if kind == "embeds":
            picture = self._model.prepare_image(EmbedsFile(path))
            return Attachment(kind, str(path), picture.sha256, picture)
        picture = self._model.prepare_image(path)
        return Attachment(kind, str(path), hashlib.sha256(read_file(path)).hexdigest(), picture)

    def _ask(self, question: str) -> None:
        from acestep_gguf.engine.conversation import Exchange

        messages = self.conversation.messages(question, self._attachments)
        stream = self._model.stream(messages, options=self._answer_options)
        chunks = from_a_thread(stream, self._model.cancel, lambda: self._is_cancelled)
        with self._status, closing(chunks):
            answer = print_chunks(self._status.until_text(chunks))
        if not self._quiet:
            print(statistics(answer), file=sys.stderr)
        if answer.finish_reason == "cancelled" and not answer.text:
            return  # as if it had not been asked
        self.conversation.exchanges.append(Exchange(question, tuple(self._attachments), answer))
        self._attachments.clear()

    def _do(self, line: str) -> None:
        name, _, argument = line.strip().partition(" ")
        argument = argument.strip()
        command = COMMANDS.get(name)
        if command is None:
            raise PromptError(
                f"there is no command {name}: /help lists them; a question may begin with / after a space."
            )
        if command.argument and not argument:
            raise PromptError(f"the path is missing: write {name} {command.argument}.")
        if argument and not command.argument:
            raise PromptError(f"{name} stands alone: write it without {argument!r}.")
        command.do(self, _path(argument))

    def _print_error(self, error: object) -> None:
        self.failed = True
        print(f"error: {printable(error)}", file=sys.stderr)

    def _say(self, text: str) -> None:
        print(f"[{printable(text)}]", file=sys.stderr)

    def _image(self, path: Path) -> None:
        self.attach("picture", path)
        self._say(f"{path} goes with the next question")

    def _embeds(self, path: Path) -> None:
        self.attach("embeds", path)
        self._say(f"{path} goes with the next question")

    def _save(self, path: Path) -> None:
        self.conversation.save(path)
        self._say(f"{path} has the conversation, {len(self.conversation.exchanges)} questions long")

    def _load(self, path: Path) -> None:
        from acestep_gguf.engine.conversation import Conversation

        self.conversation = Conversation.load(path, self._opened)
        self._attachments.clear()
        self._say(f"the conversation goes on after {len(self.conversation.exchanges)} questions")

    def _undo(self, _: Path) -> None:
        if not self.conversation.exchanges:
            raise PromptError("there is no answer yet to take back.")
        taken = self.conversation.exchanges.pop()
        self._attachments[:0] = taken.attachments  # they belong to what is asked instead
        self._say(f"taken back: {taken.question}")

    def _reset(self, _: Path) -> None:
        from acestep_gguf.engine.conversation import Conversation

        self.conversation = Conversation(self.conversation.system_prompt)
        self._attachments.clear()
        self._say("the conversation begins anew")

    def _help(self, _: Path) -> None:
        for name, command in COMMANDS.items():
            print(f"{name + ' ' + command.argument:<15} {command.help}")

    def _exit(self, _: Path) -> None:
        self._ended = True


@dataclass(frozen=True, slots=True)
class Command:
    """What a line that begins with a slash does; ``argument`` is what must follow its name."""

    argument: str
    help: str
    do: Callable[[Chat, Path], None]


COMMANDS: Final = {
    "/image": Command("PATH", "add a picture to the next message", Chat._image),
    "/embeds": Command("PATH", "add a file of image embeds to it", Chat._embeds),
    "/save": Command("PATH", "write the conversation to a file", Chat._save),
    "/load": Command("PATH", "go on with a saved conversation", Chat._load),
    "/undo": Command("", "take the last question back; its pictures go with the next", Chat._undo),
    "/reset": Command("", "forget everything but the system prompt", Chat._reset),
    "/help": Command("", "show this list", Chat._help),
    "/exit": Command("", "end the chat, as Ctrl-D does", Chat._exit),
}


def _path(text: str) -> Path:
    """A path as typed, from ~ or not, or as a terminal writes a dropped file: quoted or with backslashes."""
    if not os.path.exists(text):
        with suppress(ValueError):  # a quote that does not end, as in John's.png
            words = shlex.split(text)
            text = words[0] if len(words) == 1 else text
    return Path(os.path.expanduser(text))
