import base64
import csv
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acestep_gguf.errors import BenchmarkError, ImageError
from acestep_gguf.score import tsv
from acestep_gguf.score.tsv import MISSING, tsv_rows
from tests.support.benchmark_files import encoded, png, write_tsv


def test_cells_and_pictures(tmp_path: Path) -> None:
    path = write_tsv(
        tmp_path / "a.tsv",
        [
            {
                "index": 1,
                "question": 'say "hi",\nthen\tgo',
                "A": "x",
                "L2-Category": "ab",
                "image": encoded(1),
            },
            {"index": 2, "question": "Größe?", "A": None, "L2-Category": None, "image": encoded(2)},
            {"index": 3, "question": "again", "A": "None", "L2-Category": "nan", "image": "1"},
        ],
    )
    rows = [*tsv_rows(path)]
    assert [dict(row.texts) for row in rows] == [
        {"index": "1", "question": 'say "hi",\nthen\tgo', "A": "x", "l2-category": "ab"},
        {"index": "2", "question": "Größe?"},
        {"index": "3", "question": "again", "image": "1"},
    ]
    assert [row.picture.read() for row in rows[:2]] == [png(1), png(2)]
    assert rows[0].picture.key != rows[1].picture.key
    with pytest.raises(BenchmarkError, match="row 3 has no picture"):
        _ = rows[2].picture


def test_a_picture_of_two_rows_has_one_key(tmp_path: Path) -> None:
    rows = [*tsv_rows(write_tsv(tmp_path / "a.tsv", [{"index": n, "image": encoded(7)} for n in (1, 2)]))]
    assert rows[0].picture.key == rows[1].picture.key


@pytest.mark.parametrize("ending", ["\n", "\r\n", ""])
def test_ends_of_lines(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(f"\ufeffindex\tquestion\r\n1\ta\n\n2\t{ending}".encode())
    assert [dict(row.texts) for row in tsv_rows(path)] == [{"index": "1", "question": "a"}, {"index": "2"}]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=12),
            st.text('a"\t\n ', max_size=8),
            st.binary(min_size=60, max_size=90),
        ),
        max_size=5,
    )
)
def test_what_csv_writes_is_read(tmp_path: Path, written: list[tuple[str, str, bytes]]) -> None:
    path = tmp_path / "a.tsv"
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(["index", "image", "one", "two"])
    for number, (one, two, data) in enumerate(written):
        writer.writerow([number, base64.b64encode(data).decode(), one, two])
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    rows = [*tsv_rows(path)]
    assert [row.picture.read() for row in rows] == [data for *_, data in written]
    assert [(row.texts.get("one", ""), row.texts.get("two", "")) for row in rows] == [
        ("" if one in MISSING else one, two) for one, two, _ in written
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("index\tindex\n1\t2\n", "row 0 is no header"),
        ("index\tq\n1\n", "row 1 has 1 cells, not 2"),
        ('index\tq\n1\t"never ends\n', "ends inside of quotes"),
        ("index\tq\n1\t" + "x" * 2**17 + "\n", "text of more than 64 KiB"),
        ("index\n" + '"' + "\n" * 20_000 + '"', "10000 lines"),
        ("\t".join(map(str, range(101))), "row 0 is no header"),
    ],
)
def test_what_is_no_tsv(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.tsv"
    path.write_text(text)
    with pytest.raises(BenchmarkError, match=message):
        [*tsv_rows(path)]


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(b"index\tq\n1\t\xff\n")
    with pytest.raises(BenchmarkError, match="row 1 is not UTF-8"):
        [*tsv_rows(path)]


def test_a_file_without_end_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tsv, "MAX_ROW_BYTES", 2**20)
    for text in (b"x" * 2**21, b'"' + b"x\n" * 9_000 + b"x" * 2**21):
        path = tmp_path / "a.tsv"
        path.write_bytes(text)
        with pytest.raises(BenchmarkError, match="more than 1 MiB"):
            [*tsv_rows(path)]


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="cannot be read"):
        [*tsv_rows(tmp_path / "a.tsv")]


def test_damaged_base64(tmp_path: Path) -> None:
    (row,) = tsv_rows(write_tsv(tmp_path / "a.tsv", [{"index": 1, "image": "!" * 80}]))
    with pytest.raises(ImageError, match="base64 is damaged"):
        row.picture.read()


def test_a_file_that_went_away(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "a.tsv", [{"index": 1, "image": encoded()}])
    (row,) = tsv_rows(path)
    path.unlink()
    with pytest.raises(ImageError, match="cannot be read"):
        row.picture.read()
