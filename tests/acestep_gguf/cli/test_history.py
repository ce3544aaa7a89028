from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acestep_gguf.cli.history import MOST_BYTES, MOST_BYTES_OF_LINE, MOST_LINES, History


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.lists(st.text(max_size=20)))
def test_what_was_typed_is_there_in_the_next_chat(tmp_path: Path, typed: list[str]) -> None:
    path = tmp_path / "state" / "history"
    path.unlink(missing_ok=True)
    for line in typed:
        History(path).add(line)
    expected = "".join(f"{line} \n".replace("\n", " ")[:-2] + "\n" for line in typed if line.strip())
    assert History(path).lines() == expected.encode(errors="replace").decode().splitlines()


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "state" / "history"
    History(path).add("my question")
    assert path.stat().st_mode & 0o077 == path.parent.stat().st_mode & 0o077 == 0


def test_it_does_not_grow_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "history"
    history = History(path)
    path.write_text("".join(f"{number}\n" for number in range(3 * MOST_LINES)))
    last = [str(number) for number in range(2 * MOST_LINES, 3 * MOST_LINES)]
    assert history.lines() == last
    assert path.read_text().splitlines() == last
    assert path.stat().st_mode & 0o077 == 0
    path.write_bytes(b"x" * 3 * MOST_BYTES + b"\nlast\n")
    assert history.lines()[-1] == "last"
    assert path.stat().st_size <= MOST_BYTES
    history.add("y" * MOST_BYTES_OF_LINE)
    assert history.lines()[-1] == "last"


def test_a_chat_goes_on_without_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "history"):
        History(path).add("hello")
        assert History(path).lines() == []
