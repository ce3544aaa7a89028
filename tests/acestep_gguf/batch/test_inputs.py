import io
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep_gguf.batch.inputs import entries_of, natural
from acestep_gguf.batch.tasks import Entry, tasks_of
from acestep_gguf.errors import BatchError
from tests.support.pdf_files import BLUE, NO_PASSWORD_OPENS_IT, RED, pdf


def entries(
    *arguments: object, recursive: bool = False, stdin: bytes | None = None, output: Path | None = None
) -> list[Entry]:
    file = None if stdin is None else io.BytesIO(stdin)
    return list(entries_of(map(str, arguments), recursive=recursive, stdin=file, output=output))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("10.jpg", "2.JPG", "b.webp", ".hidden.png", "notes.txt", "sub/1.png", ".git/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(found: list[Entry], folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for entry in found for path in entry.images]


def test_a_folder_is_its_pictures_in_natural_order(folder: Path) -> None:
    assert names(entries(folder), folder) == ["2.JPG", "10.jpg", "b.webp"]
    assert names(entries(folder, recursive=True), folder) == ["2.JPG", "10.jpg", "b.webp", "sub/1.png"]


def test_a_folder_that_leads_to_itself(folder: Path) -> None:
    (folder / "sub/loop").symlink_to(folder)
    assert len(entries(folder, recursive=True)) == 4


def test_a_pattern_that_the_shell_left_as_it_is(folder: Path) -> None:
    assert names(entries(folder / "*.[jJ][pP][gG]"), folder) == ["2.JPG", "10.jpg"]
    assert names(entries(folder / "**/*.png"), folder) == ["sub/1.png"]
    assert names(entries(folder / "sub/**"), folder) == ["sub/1.png"]


@pytest.mark.parametrize("by_the_shell", [True, False])
def test_the_table_and_its_journal_are_no_pictures(folder: Path, by_the_shell: bool) -> None:
    for name in ("a.csv", "a.csv.journal"):
        (folder / name).write_text("image\n")
    arguments = sorted(folder.glob("[!.]*")) if by_the_shell else [folder / "*"]
    found = names(entries(*arguments, output=folder / "a.csv"), folder)
    assert {*found, "sub/1.png"} == {"10.jpg", "2.JPG", "b.webp", "notes.txt", "sub/1.png"}


def test_a_file_whose_name_looks_like_a_pattern(folder: Path) -> None:
    (folder / "a[1].jpg").touch()
    assert names(entries(folder / "a[1].jpg"), folder) == ["a[1].jpg"]


def test_arguments_keep_their_order_and_may_repeat(folder: Path) -> None:
    arguments = [folder / "b.webp", folder / "10.jpg", folder / "b.webp"]
    assert names(entries(*arguments), folder) == ["b.webp", "10.jpg", "b.webp"]
    assert len({task.key for task in tasks_of(entries(*arguments), ["What?"])}) == 3


def test_what_is_named_may_be_no_picture_but_must_be_there(folder: Path) -> None:
    assert names(entries(folder / "notes.txt"), folder) == ["notes.txt"]  # a row with an error, later
    with pytest.raises(BatchError, match="is empty"):
        entries("")
    with pytest.raises(BatchError, match="is not there"):
        entries(folder / "missing.jpg")
    with pytest.raises(BatchError, match="no file matches"):
        entries(folder / "*.gif")
    (folder / "empty").mkdir()
    with pytest.raises(BatchError, match="-r takes"):
        entries(folder / "empty")


def test_lines_of_standard_input_are_paths_or_objects() -> None:
    data = b'a.jpg\r\n\n{"id": 7, "image": "b.jpg", "prompt": "Who?", "tag": [1]}\nc\xff.jpg'
    first, second, third = entries("-", stdin=data)
    assert first == Entry("a.jpg", (Path("a.jpg"),))
    assert second == Entry(7, (Path("b.jpg"),), "Who?", {"tag": [1]})
    assert third.id == "c�.jpg"
    assert third.images == (Path("c\udcff.jpg"),)
    with pytest.raises(BatchError, match="standard input is closed"):
        entries("-")


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_json_lines(tmp_path: Path) -> None:
    table = write(
        tmp_path / "t.jsonl",
        '{"id": "x", "image": "1.png", "label": {"deep": null}}\n'
        '{"images": ["1.png", "/abs/2.png"], "prompt": "Same?"}\n'
        '{"prompt": "No picture?"}\n',
    )
    first, second, third = entries(table)
    assert first == Entry("x", (tmp_path / "1.png",), None, {"label": {"deep": None}})
    assert second == Entry(str(tmp_path / "1.png"), (tmp_path / "1.png", Path("/abs/2.png")), "Same?", {})
    assert third == Entry(f"{table}:3", (), "No picture?", {})


def test_csv(tmp_path: Path) -> None:
    table = write(
        tmp_path / "t.csv",
        b'\xef\xbb\xbfid,image,prompt,note\r\n7,1.png,"What is\nthis, ""really""?",\r\n,2.png,,"a,b"\r\n',
    )
    assert entries(table) == [
        Entry("7", (tmp_path / "1.png",), 'What is\nthis, "really"?', {"note": ""}),
        Entry(str(tmp_path / "2.png"), (tmp_path / "2.png",), None, {"note": "a,b"}),
    ]
    several = write(tmp_path / "u.csv", 'images\n"[""1.png"", ""2.png""]"\n')
    assert entries(several)[0].images == (tmp_path / "1.png", tmp_path / "2.png")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("t.jsonl", "{}", "t.jsonl:1 has neither image nor prompt"),
        ("t.jsonl", "\n[1]", "t.jsonl:2 is no JSON object"),
        ("t.jsonl", '{"image": "a"', "t.jsonl:1 is no JSON object"),
        ("t.jsonl", '{"image": 5}', "image"),
        ("t.jsonl", '{"image": "a", "images": ["b"]}', "image and images"),
        ("t.jsonl", '{"image": "a", "prompt": " "}', "empty prompt"),
        ("t.jsonl", '{"image": "a", "text": "mine"}', "text, which answers have"),
        ("t.jsonl", '{"a":' + "[" * 100_000, "no JSON object"),
        ("t.jsonl", '{"image": "' + "a" * 2**20 + '"}', "longer than 1 MiB"),
        ("t.jsonl", b'{"image": "\xff"}', "no JSON object"),
        ("t.jsonl", '{"image": "\\ud800"}', "no JSON object"),
        ("t.csv", "image,image\na,b\n", "a column twice"),
        ("t.csv", "image,note\na\n", "1 cells, not 2"),
        ("t.csv", 'image\n"a', "no CSV"),
        ("t.csv", b"image\n\xff\n", "t.csv:2 is not UTF-8"),
        ("t.csv", "images\na.png\n", "no list"),
        ("t.csv", "image\n" + "a" * 200_000, "no CSV"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, name: str, data: str | bytes, words: str) -> None:
    table = write(tmp_path / name, data)
    with pytest.raises(BatchError) as caught:
        entries(table)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.lists(st.text(st.sampled_from("a1٣9²Z")), max_size=20), st.randoms())
def test_natural_order_is_one(texts: list[str], random: Random) -> None:
    ordered = sorted(texts, key=natural)
    random.shuffle(texts)
    assert sorted(texts, key=natural) == ordered


def test_natural_order() -> None:
    assert sorted(["b1", "a10", "a9", "A2", "1", "a"], key=natural) == ["1", "a", "A2", "a9", "a10", "b1"]


def test_a_task_for_each_prompt_with_a_key_of_its_own() -> None:
    asked = [Entry("1", (Path("1.png"),)), Entry("1", (Path("1.png"),)), Entry("2", (), "Own?")]
    tasks = tasks_of(asked, ["A?", "B?"])
    assert [(task.id, task.prompt) for task in tasks] == [
        ("1", "A?"),
        ("1", "B?"),
        ("1", "A?"),
        ("1", "B?"),
        ("2", "Own?"),
    ]
    assert len({task.key for task in tasks}) == 5
    assert [task.key for task in tasks_of(asked, ["A?", "B?"])] == [task.key for task in tasks]


@pytest.mark.parametrize("make", [lambda: tasks_of([], ["A?"]), lambda: tasks_of([Entry("1", ())], [])])
def test_nothing_to_ask(make: Callable[[], object]) -> None:
    with pytest.raises(BatchError):
        make()


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.PDF"
    path.write_bytes(pdf((30, 30, RED), (30, 30, BLUE)))
    return path


def test_each_page_of_a_pdf_is_a_picture(scan: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    pages = [Path(f"{scan}#page=1"), Path(f"{scan}#page=2")]
    by_page = [Entry(str(page), (page,)) for page in pages]
    assert entries(tmp_path) == [Entry(str(tmp_path / "a.png"), (tmp_path / "a.png",)), *by_page]
    assert entries(tmp_path / "*.PDF") == entries("-", stdin=bytes(scan)) == entries(scan) == by_page
    assert entries(pages[1]) == entries("-", stdin=bytes(pages[1])) == by_page[1:]
    with pytest.raises(BatchError, match="is not there"):
        entries(tmp_path / "none.pdf#page=1")


def test_the_pages_of_a_pdf_in_a_table(scan: Path, tmp_path: Path) -> None:
    table = write(
        tmp_path / "t.jsonl",
        '{"image": "scan.PDF", "tag": 1}\n{"image": "scan.PDF", "id": 7}\n{"images": ["scan.PDF"]}\n'
        '{"image": "scan.PDF#page=2"}\n{"image": "", "prompt": "No picture?"}\n',
    )
    first, second = (tmp_path / f"scan.PDF#page={number}" for number in (1, 2))
    assert entries(table) == [
        Entry(str(first), (first,), None, {"tag": 1}),
        Entry(str(second), (second,), None, {"tag": 1}),
        Entry(7, (first,)),
        Entry(7, (second,)),
        Entry(str(first), (first, second)),  # a list is one question
        Entry(str(second), (second,)),
        Entry(f"{table}:5", (), "No picture?"),
    ]
    assert len({task.key for task in tasks_of(entries(table)[:6], ["What?"])}) == 6


def test_a_pdf_that_cannot_be_read_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = tmp_path / "locked.pdf"
    locked.write_bytes(pdf((30, 30, RED), trailer=NO_PASSWORD_OPENS_IT))
    assert entries(tmp_path) == [Entry(str(locked), (locked,))]
    locked.write_bytes(pdf((30, 30, RED)))
    monkeypatch.setitem(sys.modules, "pypdfium2", None)  # as if it were not installed
    assert entries(tmp_path) == [Entry(str(locked), (locked,))]
