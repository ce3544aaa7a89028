"""``acestep-gguf chat``: questions and answers in turn, about pictures that may come at any time."""

import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from acestep_gguf.cli.history import History, history_file
from acestep_gguf.cli.keyboard import Keyboard
from acestep_gguf.cli.lines import piped_messages
from acestep_gguf.cli.option_groups import takes_groups
from acestep_gguf.cli.options import BundleFolder, EmbedsFiles, Images, Quiet, SystemPrompt, Verbose
from acestep_gguf.cli.paths import (
    completed_last_path,
    completed_paths,
    typed_path,
    without_dropped_pictures,
)
from acestep_gguf.cli.pictures import STDIN
from acestep_gguf.cli.status_line import StatusLine
from acestep_gguf.cli.terminal import (
    from_a_thread,
    is_terminal,
    print_chunks,
    printable,
    statistics,
)
from acestep_gguf.errors import AceStepError, ContextOverflowError, ConversationError, PromptError, UsageError
from acestep_gguf.options import CACHE, AnswerOptions, EngineOptions

if TYPE_CHECKING:
    from acestep_gguf.engine.conversation import Attachment, AttachmentKind, Conversation, Exchange
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
    history: Annotated[
        bool,
        typer.Option(
            "--history/--no-history",
            help="Keep what is typed, for the arrow keys in the next chat.",
            rich_help_panel=CACHE,
        ),
    ] = True,
    answer: AnswerOptions,
    engine: EngineOptions,
) -> None:
    """Answer one question after another.

    Pictures can come at any time: /help lists the commands.
    """
    # At a terminal, Ctrl-C stops an answer and Ctrl-D ends the chat. Elsewhere questions and commands are the
    # lines of standard input; Ctrl-C ends all, and the exit code is 1 if there was an error.
    from acestep_gguf.engine.conversation import Conversation
    from acestep_gguf.engine.engine import AceStep
    from acestep_gguf.plan.report import plan_line

    if STDIN in (image or ()):
        raise UsageError("questions come on standard input here: give the path of the picture.")
    engine = replace(engine, n_parallel=1)  # one answer at a time; more would only take memory
    with (
        StatusLine(wanted=not (quiet or verbose)) as status,
        AceStep(bundle, engine, on_progress=status.show) as model,
    ):
        status.hide()
        if not quiet:
            print(plan_line(model.plan), file=sys.stderr)
        keyboard = None
        if is_terminal():
            keyboard = Keyboard(completions, History(history_file()) if history else None)
        chat = Chat(model, Conversation(system_prompt), answer, status, keyboard, quiet=quiet)
        for picture in image or []:
            chat.attach("picture", picture)
        for file in embeds or []:
            chat.attach("embeds", file)
        if keyboard is not None:
            signal.signal(signal.SIGINT, lambda *_: chat.cancel())
            print(f"{model.bundle.name} answers. /help lists the commands, Ctrl-D ends the chat.")
            chat.talk(keyboard.messages())
        else:
            chat.talk(piped_messages())
            if chat.failed:
                sys.exit(1)


class Chat:
    """A conversation with a model, message by message.

    Args:
        model: what answers.
        conversation: what was said so far.
        answer_options: how each answer is written.
        status: what the model reports its progress to; it is gone while an answer is written.
        keyboard: of a person, who is asked before something is lost, and may drop pictures on the terminal.
        quiet: print no statistics.
    """

    def __init__(
        self,
        model: "AceStep",
        conversation: "Conversation",
        answer_options: AnswerOptions,
        status: StatusLine,
        keyboard: Keyboard | None = None,
        *,
        quiet: bool = False,
    ) -> None:
        self.conversation = conversation
        self.failed = False
        self._model = model
        self._status = status
        self._quiet = quiet
        self._answer_options = replace(answer_options, exact=False)
        self._keyboard = keyboard
        self._attachments: list[Attachment] = []  # to the next message
        self._saved: tuple[Path | None, list[Exchange]] = (None, [])  # where, and what of the conversation
        self._is_cancelled = False
        self._ended = False

    def talk(self, messages: Iterable[str]) -> None:
        """Answer each message, or do what it commands; an error is printed and does not end the chat."""
        for message in messages:
            self._is_cancelled = False
            try:
                self._take(message)
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

    def _take(self, message: str) -> None:
        if message.startswith("/") and message.split(maxsplit=1)[0] in COMMANDS:
            self._do(message)
            return
        question, pictures = message.strip(), list[Path]()
        if self._keyboard is not None:
            question, pictures = without_dropped_pictures(message)
        if not pictures and os.path.isfile(path := typed_path(question)):
            raise PromptError(f"{path} is a file, not a question: write /image {path} to add it.")
        if not pictures and message.startswith("/"):
            raise PromptError(
                f"there is no command {message.split(maxsplit=1)[0]}: /help lists them; a question may begin "
                "with / after a space."
            )
        for picture in pictures:
            self._image(picture)
        if question:
            self._ask(question)

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
        exchange = self._answered(question, self._attachments, self._answer_options)
        if exchange is not None:
            self.conversation.exchanges.append(exchange)
            self._attachments.clear()

    def _answered(
        self, question: str, attachments: Sequence["Attachment"], options: AnswerOptions
    ) -> "Exchange | None":
        """A question with its answer; None if it was cancelled before the first word."""
        from acestep_gguf.engine.conversation import Exchange

        messages = self.conversation.messages(question, attachments)
        stream = self._model.stream(messages, options=options)
        chunks = from_a_thread(stream, self._model.cancel, lambda: self._is_cancelled)
        with self._status, closing(chunks):
            answer = print_chunks(self._status.until_text(chunks))
        if not self._quiet:
            print(statistics(answer), file=sys.stderr)
        if answer.finish_reason == "cancelled" and not answer.text:
            return None
        return Exchange(question, tuple(attachments), answer)

    def _do(self, line: str) -> None:
        name, *rest = line.split(maxsplit=1)
        argument = "".join(rest).strip()
        command = COMMANDS[name]
        if command.argument and not argument:
            raise PromptError(f"the path is missing: write {name} {command.argument}.")
        if argument and not command.argument:
            raise PromptError(f"{name} stands alone: write it without {argument!r}.")
        command.do(self, typed_path(argument))

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
        from acestep_gguf.engine.conversation import check_may_be_replaced

        if os.path.lexists(path) and path.absolute() != self._saved[0]:
            check_may_be_replaced(path)
            if self._keyboard is None:
                raise ConversationError(f"{path} is there already: give another path.")
            if not self._keyboard.confirms(f"{path} has another conversation. Replace it?"):
                self._say("not saved")
                return
        self.conversation.save(path)
        self._saved = path.absolute(), [*self.conversation.exchanges]
        self._say(f"{path} has the conversation, {len(self.conversation.exchanges)} questions long")

    def _load(self, path: Path) -> None:
        from acestep_gguf.engine.conversation import Conversation

        loaded = Conversation.load(path, self._opened)
        if not self._may_forget():
            return
        self.conversation = loaded
        self._saved = path.absolute(), [*loaded.exchanges]
        self._attachments.clear()
        self._say(f"the conversation goes on after {len(self.conversation.exchanges)} questions")

    def _undo(self, _: Path) -> None:
        if not self.conversation.exchanges:
            raise PromptError("there is no answer yet to take back.")
        taken = self.conversation.exchanges.pop()
        self._attachments[:0] = taken.attachments  # they belong to what is asked instead
        self._say(f"taken back: {taken.question}")

    def _may_forget(self) -> bool:
        """Whether nothing would be lost, or a person does not mind."""
        is_saved = self.conversation.exchanges == self._saved[1]
        if is_saved or self._keyboard is None:
            return True
        return self._keyboard.confirms("this conversation is not saved. Forget it?")

    def _regenerate(self, _: Path) -> None:
        if not self.conversation.exchanges:
            raise PromptError("there is no answer yet to write again.")
        last = self.conversation.exchanges.pop()
        try:
            again = self._answered(last.question, last.attachments, replace(self._answer_options, seed=None))
            last = again or last
        finally:
            self.conversation.exchanges.append(last)
        if not self._answer_options.temperature:
            self._say("without --temp, an answer is the same each time")

    def _reset(self, _: Path) -> None:
        from acestep_gguf.engine.conversation import Conversation

        if not self._may_forget():
            return
        self.conversation = Conversation(self.conversation.system_prompt)
        self._saved = None, []
        self._attachments.clear()
        self._say("the conversation begins anew")

    def _help(self, _: Path) -> None:
        for name, command in COMMANDS.items():
            print(f"{name + ' ' + command.argument:<15} {command.help}")
        print('A line that ends with a backslash goes on in the next one; or begin and end with """.')

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
    "/regenerate": Command("", "answer the last question again, with another seed", Chat._regenerate),
    "/reset": Command("", "forget everything but the system prompt", Chat._reset),
    "/help": Command("", "show this list", Chat._help),
    "/exit": Command("", "end the chat, as Ctrl-D does", Chat._exit),
}


def completions(line: str) -> list[str]:
    """What ``line``, up to the cursor, may become: a command, or a line with a longer path."""
    name, space, argument = line.partition(" ")
    if not space:
        names = [command for command in COMMANDS if line and command.startswith(line)]
        return names or completed_last_path(line)
    if name not in COMMANDS:
        return completed_last_path(line)
    return [f"{name} {path}" for path in completed_paths(argument)] if COMMANDS[name].argument else []
