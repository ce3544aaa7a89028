import re
import shlex
import subprocess
from itertools import pairwise, takewhile
from pathlib import Path

import pytest
from PIL import Image

from acestep_gguf.answer import Answer, Usage
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.cli.chat import COMMANDS, Chat, completions
from acestep_gguf.cli.keyboard import Keyboard
from acestep_gguf.cli.status_line import StatusLine
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.engine.conversation import Conversation, Exchange
from acestep_gguf.engine.engine import AceStep
from acestep_gguf.llama.binding import Model
from acestep_gguf.options import AnswerOptions
from acestep_gguf.prompt.builder import PromptBuilder, TokenSpan
from acestep_gguf.prompt.messages import user_message
from tests.support.command_line import PROGRAM
from tests.support.pdf_files import BLUE, RED, pdf
from tests.support.terminals import terminal
from tests.support.tiny_checkpoints import TinyCheckpoint


@pytest.fixture
def chat(model: AceStep) -> Chat:
    return Chat(model, Conversation(), AnswerOptions(max_tokens=5), StatusLine(wanted=False))


def answers(chat: Chat) -> list[Answer]:
    given = [past.answer for past in chat.conversation.exchanges]
    assert all(isinstance(one, Answer) for one in given)
    return given  # type: ignore[return-value]


def n_computed(usage: Usage) -> int:
    return usage.prompt_tokens - usage.cached_tokens


def n_new(before: Answer, now: Answer) -> int:
    """Tokens of a prompt that were neither in the one before nor written by the model.

    The last token of an answer that max_tokens ended was chosen, but never computed.
    """
    n_computed_of_answer = before.usage.completion_tokens - (before.finish_reason == "length")
    return now.usage.prompt_tokens - before.usage.prompt_tokens - n_computed_of_answer


def test_a_pdf_is_attached_with_all_its_pages(chat: Chat, tmp_path: Path) -> None:
    scan, saved = tmp_path / "scan.pdf", tmp_path / "saved.json"
    scan.write_bytes(pdf((30, 30, RED), (30, 30, BLUE)))
    chat.talk([f"/image {scan}", "What are these?", f"/image {scan}#page=2", "And this?", f"/save {saved}"])
    pages = [[one.path for one in past.attachments] for past in chat.conversation.exchanges]
    assert pages == [[f"{scan}#page=1", f"{scan}#page=2"], [f"{scan}#page=2"]]
    chat.talk(["/reset", f"/load {saved}"])
    assert len(chat.conversation.exchanges) == 2


def test_a_turn_prefills_what_is_new_and_nothing_else(
    chat: Chat, picture: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (9, 9), "blue").save(tmp_path / "blue.png")
    chat.talk([f"/image {picture}", "What is this?", "Sure?", f"/image {tmp_path / 'blue.png'}", "And this?"])
    chat.talk(["Is it the same?", "Why not?", "Again?"])
    assert not chat.failed
    given = answers(chat)
    assert [one.usage.image_tokens for one in given] == [4, 4, 8, 8, 8, 8]
    control = set(Bundle.read(tiny_bundle).prompt.control_tokens.values())
    n_checked = 0
    for before, now in pairwise(given):
        assert now.timings.prefill_tokens == n_computed(now.usage)
        if control.isdisjoint(before.tokens):  # else the model wrote what only the template may
            assert n_computed(now.usage) == n_new(before, now)
            n_checked += 1
    assert n_checked >= 3


def test_what_it_answers_is_what_a_fresh_model_answers(tiny_bundle: Path, chat: Chat, picture: Path) -> None:
    chat.talk([f"/image {picture}", "What is this?", "Sure?"])
    first, second = chat.conversation.exchanges
    messages = Conversation(None, [first]).messages(second.question, second.attachments)
    with AceStep(tiny_bundle, quant="F32", n_threads=1, n_ctx=256) as fresh:
        assert fresh.generate(messages, max_tokens=5).text == answers(chat)[1].text


def test_a_changed_earlier_turn_reuses_the_common_beginning(
    chat: Chat, picture: Path, tiny_bundle: Path, weights: Model
) -> None:
    prompts = PromptBuilder(Bundle.read(tiny_bundle).prompt, weights.tokenize, weights.token_bytes)

    def positions(question: str) -> list[int]:
        prompt = prompts.build([user_message(question, ["picture"])])
        spans = [span.tokens if isinstance(span, TokenSpan) else [-1] * 4 for span in prompt.spans]
        return [position for span in spans for position in span]

    question, changed = "What is this thing here?", "What is this now?"
    chat.talk([f"/image {picture}", question, "Sure?", "/reset", f"/image {picture}", changed])
    (answer,) = answers(chat)
    pairs = zip(positions(question), positions(changed), strict=False)
    assert answer.usage.cached_tokens == len(list(takewhile(lambda pair: pair[0] == pair[1], pairs))) > 10


def test_commands(chat: Chat, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "talk.json"
    chat.talk([f"/image {picture}", "What is this?", f"/save {file}", "/reset", "Why?"])
    assert answers(chat)[0].usage.image_tokens == 0
    assert file.stat().st_mode & 0o077 == 0
    chat.talk([f'/load "{file}"', "Sure?"])
    loaded, new = chat.conversation.exchanges
    assert (loaded.question, new.question) == ("What is this?", "Sure?")
    assert isinstance(new.answer, Answer)
    assert new.answer.usage.image_tokens == 4
    capsys.readouterr()
    chat.talk(["/help", "", "  ", "/exit", "Not asked"])
    assert len(chat.conversation.exchanges) == 2
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed[:-1]] == list(COMMANDS)
    assert not chat.failed


def test_a_question_is_taken_back_and_its_picture_goes_with_the_next(chat: Chat, picture: Path) -> None:
    chat.talk(["Hello", f"/image {picture}", "What is ths?", "/undo", "What is this?"])
    assert [past.question for past in chat.conversation.exchanges] == ["Hello", "What is this?"]
    assert answers(chat)[1].usage.image_tokens == 4
    chat.talk(["/undo", "/undo"])
    assert not chat.conversation.exchanges
    assert not chat.failed
    chat.talk(["/undo"])
    assert chat.failed


def test_an_answer_is_written_again_with_another_seed(chat: Chat, picture: Path) -> None:
    chat.talk([f"/image {picture}", "What is this?", "/regenerate"])
    first = answers(chat)[0]
    assert first.seed is None
    drawn = AnswerOptions(max_tokens=8, temperature=5.0, top_k=0, top_p=1.0, min_p=0.0, seed=7)
    chat = Chat(chat._model, Conversation(), drawn, StatusLine(wanted=False))
    chat.talk(["Hello", f"/image {picture}", "What is this?"])
    seen = {answers(chat)[1].tokens}
    for _ in range(2):
        chat.talk(["/regenerate"])
        hello, again = answers(chat)
        assert hello.seed == 7 != again.seed
        assert again.usage.image_tokens == 4
        seen.add(again.tokens)
    assert len(seen) == 3
    assert not chat.failed


def test_an_answer_that_cannot_be_written_again_stays(chat: Chat) -> None:
    chat.talk(["/regenerate"])
    assert chat.failed
    too_long = Exchange("many words " * 400, (), "yes")
    chat.conversation.exchanges.append(too_long)
    chat.talk(["/regenerate"])
    assert chat.conversation.exchanges == [too_long]


def typing(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, *answers: str, conversation: Conversation | None = None
) -> Chat:
    """The same at a terminal, where a person gives these answers to yes or no."""
    left = iter(answers)
    monkeypatch.setattr("builtins.input", lambda _prompt: next(left))
    return Chat(
        chat._model,
        conversation or Conversation(),
        AnswerOptions(max_tokens=5),
        StatusLine(wanted=False),
        Keyboard(completions, None),
    )


def test_another_conversation_is_not_lost_without_a_question(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, other = tmp_path / "talk.json", tmp_path / "other.json"
    chat.talk(["Hello", f"/save {file}", "More", f"/save {file}"])
    assert not chat.failed, "it is the same conversation"
    saved = file.read_bytes()
    fresh = Chat(chat._model, Conversation(), AnswerOptions(max_tokens=5), StatusLine(wanted=False))
    fresh.talk([f"/save {file}"])
    assert "is there already" in capsys.readouterr().err
    assert file.read_bytes() == saved
    person = typing(chat, monkeypatch, "", "yes")
    person.talk([f"/save {file}"])
    assert file.read_bytes() == saved
    person.talk([f"/save {file}"])
    assert file.read_bytes() != saved
    other.write_text("no conversation")
    person.talk([f"/save {other}"])  # nobody is asked
    assert "is not a saved conversation" in capsys.readouterr().err


def test_a_conversation_that_is_not_saved_is_not_forgotten_without_a_question(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "talk.json"
    person = typing(chat, monkeypatch, "n", "", "y")
    person.talk(["/reset", "Hello", "/reset", f"/save {file}", "/reset", f"/load {file}", "More"])
    assert len(person.conversation.exchanges) == 2, "it was not saved, then saved, then loaded"
    person.talk([f"/load {file}"])
    assert len(person.conversation.exchanges) == 2
    person.talk([f"/load {file}"])
    assert len(person.conversation.exchanges) == 1
    assert not person.failed


def test_pictures_may_be_dropped_into_a_question(
    chat: Chat, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = typing(chat, monkeypatch)
    person.talk([f"What is in '{picture}' here?", str(picture), "And this?", f"{picture.parent}/none.png ?"])
    assert [past.question for past in person.conversation.exchanges] == ["What is in here?", "And this?"]
    assert [one.usage.image_tokens for one in answers(person)] == [4, 8]
    assert person.failed
    chat.talk([f"What is in {picture}"])  # in a pipe, a question is what it is
    assert answers(chat)[0].usage.image_tokens == 0


def test_what_tab_offers(picture: Path) -> None:
    assert completions("/re") == ["/regenerate", "/reset"]
    assert completions("/image") == ["/image"]
    assert completions("") == completions("/reset x") == completions("hello") == []
    begin = str(picture)[:-6]
    assert completions(begin) == [str(picture)]
    assert completions(f"/image {begin}") == [f"/image {picture}"]
    assert completions(f"What is in {begin}") == [f"What is in {picture}"]


def test_errors_are_one_line_and_the_chat_goes_on(
    chat: Chat, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["/fly", "/image", "/reset all", f"/image {tmp_path}", "/load x", "/save /none/x", "/embeds x"]
    lines += [str(picture), f"'{picture}'"]  # dropped on the terminal, without a word
    lines += ["/image\tx"]
    for line in lines:
        chat.talk([line])
        captured = capsys.readouterr()
        assert captured.err.startswith("error: "), line
        assert captured.err.count("\n") == 1
        assert captured.out == ""
    assert chat.failed
    chat.talk(["Hello", " /fly"])
    assert [past.question for past in chat.conversation.exchanges] == ["Hello", "/fly"]


def test_what_a_command_did_is_told(
    chat: Chat, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for line, words in (
        (f"/image {picture}", "goes with the next question"),
        (f"/save {tmp_path / 'talk.json'}", "has the conversation, 0 questions long"),
        (f"/load {tmp_path / 'talk.json'}", "goes on after 0 questions"),
        ("/reset", "begins anew"),
    ):
        chat.talk([line])
        captured = capsys.readouterr()
        assert words in captured.err
        assert captured.out == ""


@pytest.mark.parametrize("name", ["two words.png", "John's.png", "back\\slash.png"])
def test_paths_as_typed_and_as_dropped(chat: Chat, picture: Path, name: str) -> None:
    path = picture.rename(picture.with_name(name))
    for written in (str(path), shlex.quote(str(path)), re.sub(r"([ '\\])", r"\\\1", str(path))):
        chat.talk([f"/image {written}"])
    assert not chat.failed


def test_a_full_context_does_not_end_the_chat(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    chat.talk(["Hello", "many words " * 400])
    captured = capsys.readouterr()
    assert len(chat.conversation.exchanges) == 1
    (error,) = (line for line in captured.err.splitlines() if line.startswith("error: "))
    assert "the context holds 256" in error
    assert "/reset" in error
    chat.talk(["Go on"])
    assert len(chat.conversation.exchanges) == 2
    chat.talk(["/reset", "Hello"])
    assert len(chat.conversation.exchanges) == 1


@pytest.mark.slow
def test_lines_from_a_pipe(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    def talk(stdin: bytes, *options: object) -> subprocess.CompletedProcess[bytes]:
        command = [*PROGRAM, "chat", str(tiny_bundle), "-t", "1", "-n", "4", "--no-cache", *map(str, options)]
        return subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=120)

    done = talk("What is this?\r\nGröße?".encode(), "--image", picture, "-sys", "be brief")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) >= 2
    _plan, first, second = done.stderr.decode().splitlines()
    assert "(4 of pictures, 0 known from before)" in first
    assert re.search(r"\(4 of pictures, [1-9]\d* known from before\)", second)
    # What goes wrong is told, the rest is done, and the exit code says so.
    failed = talk(b"/fly\nHello\n")
    assert failed.returncode == 1
    assert failed.stdout
    assert "\nerror: there is no command /fly" in failed.stderr.decode()
    missing = talk(b"x", "--image", tmp_path / "none.png")
    assert (missing.returncode, missing.stdout) == (1, b"")
    assert missing.stderr.count(b"\nerror: ") == 1


@pytest.fixture(scope="module")
def slow_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that needs seconds for a full context."""
    folder = tmp_path_factory.mktemp("slow")
    slow = TinyCheckpoint(has_tower=False, hidden_size=512, intermediate_size=2048, n_layers=8, n_heads=8)
    convert_checkpoint(slow.write(folder / "checkpoint"), folder / "bundle", ("Q8_0",))
    return folder / "bundle"


STATISTICS = r"\[load .*? known from before\) .*?answer (\d+) tokens .*?\| (\w+)\]\r\n"


@pytest.mark.slow
def test_ctrl_c_stops_the_answer_and_not_the_chat(slow_bundle: Path) -> None:
    with terminal("chat", slow_bundle, "-t", 1, "-n", 450, "--no-cache") as at:
        at.wait_for(r"/help.*> ")
        at.type("hello\r")
        at.wait_for(r"hello\r\n.")  # the answer has begun
        at.type("\x03")
        shown = at.wait_for(STATISTICS)
        assert "cancelled]" in shown
        assert int(re.search(STATISTICS, shown)[1]) < 450  # type: ignore[index]
        at.wait_for("> ")
        at.type("not this")
        at.wait_for("not this")
        at.insist("\x03", "> ")  # drops the line; readline may have lost one, and drop the next line instead
        at.insist("/save talk-that-is-not-there/x\r", "error: .*> ")
        at.type("again\r")
        at.wait_for(r"again\r\n.")
        at.type("\x03")
        shown = at.wait_for(STATISTICS)
        assert re.search(r" [1-9]\d* known from before", shown)
        at.wait_for("> ")
        at.type("\x04")
        assert at.process.wait(30) == 0


def test_ctrl_c_while_it_reads_a_long_question(slow_bundle: Path) -> None:
    assert Bundle.read(slow_bundle).image is None
    with terminal("chat", slow_bundle, "-t", 1, "-n", 4, "-b", 16, "--no-cache", term="xterm") as at:
        at.wait_for(r"/help.*> ")
        at.type("word " * 400 + "\r")
        at.wait_for(r"reading \d+ %")
        at.type("\x03")
        shown = at.wait_for(STATISTICS)
        assert "answer 0 tokens" in shown
        assert "cancelled]" in shown
        at.wait_for("> ")
        at.type("hello\r")  # the other question is as if it had not been asked
        shown = at.wait_for(STATISTICS)
        assert int(re.search(r"prompt (\d+) tokens", shown)[1]) < 40  # type: ignore[index]
        at.wait_for("> ")
        at.type("/exit\r")
        assert at.process.wait(30) == 0


@pytest.mark.slow
def test_a_person_types(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (tmp_path / "größe 1.json").write_text("{}")
    options = ("chat", tiny_bundle, "-t", 1, "-n", 2, "--no-cache")
    with terminal(*options) as at:
        at.wait_for(r"/help.*> ")
        at.type("first\\\r")
        at.wait_for(r"\.\.\. ")
        at.type("second\r")
        at.wait_for(STATISTICS + "> ")
        at.type(f"/lo\t {tmp_path}/grö\t\r")
        assert "größe 1.json is not a saved conversation" in at.wait_for("error: .*> ")
        at.type("/reset\r")
        at.wait_for(r"\[y/N\] ")
        at.type("y\r")
        at.wait_for("begins anew")
        at.wait_for("> ")
        at.type("\x04")
        assert at.process.wait(30) == 0
    history = tmp_path / "acestep-gguf" / "chat_history"
    assert history.stat().st_mode & 0o077 == 0
    typed = ["first\\", "second", f"/load {tmp_path}/größe 1.json", "/reset"]
    assert history.read_text().splitlines() == typed
    with terminal(*options, "--no-history") as at:
        at.wait_for(r"/help.*> ")
        at.type("/help\r")
        at.wait_for("> ")
        at.type("\x04")
        assert at.process.wait(30) == 0
    with terminal(*options) as at:
        at.wait_for(r"/help.*> ")
        at.type("\x10")  # up, to what was typed last
        at.wait_for("/reset")
        at.type("\r")
        at.wait_for("begins anew")
    assert history.read_text().splitlines() == [*typed, "/reset"]
