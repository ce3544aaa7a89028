from pathlib import Path

import pytest

from tests.support.terminals import terminal

RUN = ("-n", 2, "-t", 1, "--no-cache")


@pytest.mark.slow
def test_a_terminal_is_told_what_happens_until_the_answer_comes(tiny_bundle: Path, picture: Path) -> None:
    with terminal("run", tiny_bundle, "-i", picture, "-p", "What is this?", *RUN, term="xterm") as at:
        at.wait_for("loading")
        at.wait_for(r"\x1b\[2K")  # the line is erased
        rest = at.wait_for(r"answer 2 tokens .*\]\r\n")
        answer = rest[rest.rindex("\x1b") :]
        assert "[plan: " in answer
        assert not any(word in answer for word in ("loading", "picture 1 of 1", "reading"))
        assert at.process.wait(30) == 0


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--quiet"], ["--json"]])
def test_it_is_not_shown_to_whoever_wants_the_answer_only(tiny_bundle: Path, options: list[str]) -> None:
    with terminal("run", tiny_bundle, "-p", "What is this?", *RUN, *options, term="xterm") as at:
        shown = at.wait_for("\r\n")
        assert "\x1b" not in shown
        assert "loading" not in shown
        assert at.process.wait(30) == 0
