"""Messages of several lines, at a terminal and in a pipe."""

import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep_gguf.cli.lines import piped_messages, whole_message
from acestep_gguf.errors import PromptError

LINE = st.text(st.characters(exclude_characters='\r\n\\"', codec="utf-8"))


def message(*lines: str) -> str:
    first, *rest = lines
    left = iter(rest)
    whole = whole_message(first, lambda: next(left, None))
    assert next(left, None) is None, "a line was not taken"
    return whole


@given(st.lists(LINE, min_size=1))
def test_lines_of_a_message_come_together(lines: list[str]) -> None:
    continued = [f"{line}\\" for line in lines[:-1]]
    assert message(*continued, lines[-1]) == "\n".join(lines)
    assert message('"""' + lines[0], *lines[1:], '"""') == "\n".join([*lines, ""])


@pytest.mark.parametrize(
    ("lines", "whole"),
    [
        (["hello"], "hello"),
        (["a\\", "b\\"], "a\nb\\"),  # the end of input, too, ends a message
        (['"""one line"""'], "one line"),
        (['  """a', "b\\", ' c"""  '], "a\nb\\\n c"),
        (['"""', "/no command", '"""'], "\n/no command\n"),
        (['""""""'], ""),
        (['"""a', "b"], "a\nb"),
        (['say """'], 'say """'),
    ],
)
def test_where_a_message_ends(lines: list[str], whole: str) -> None:
    assert message(*lines) == whole


def test_a_message_that_does_not_end_is_refused() -> None:
    with pytest.raises(PromptError, match="longer than 4 MiB"):
        whole_message('"""', lambda: "x" * 2**16)


def test_piped_lines_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def messages(stdin: bytes) -> list[str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        return list(piped_messages())

    assert messages(b"") == []
    assert messages("one\r\n\nGröße".encode()) == ["one", "", "Größe"]
    assert messages(b'one\\\r\ntwo\n"""three\nfour"""\nfive\\\n') == ["one\ntwo", "three\nfour", "five\\"]
    for damaged, words in ((b"one\n\xff\n", "not UTF-8"), (b"x" * (5 << 20), "longer than 4 MiB")):
        with pytest.raises(PromptError, match=words):
            messages(damaged)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(PromptError, match="standard input is closed"):
        list(piped_messages())
