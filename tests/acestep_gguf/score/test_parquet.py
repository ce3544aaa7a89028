from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from acestep_gguf.errors import BenchmarkError, ImageError
from acestep_gguf.score.parquet import parquet_rows
from tests.support.benchmark_files import png


def written(path: Path, rows: list[dict[str, Any]], row_group_size: int = 3) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=row_group_size)
    return path


def test_cells_and_pictures(tmp_path: Path) -> None:
    rows = [
        {
            "pid": str(n),
            "decoded_image": {"bytes": png(n), "path": "x"},
            "image": "images/1.jpg",
            "precision": 1.0,
        }
        | {
            "choices": ["a", "b"],
            "unit": None,
            "hint": "nan",
            "L2-category": 3,
            "metadata": {"skills": ["s", "t"]},
        }
        for n in range(8)
    ]
    found = [*parquet_rows(written(tmp_path / "a.parquet", rows))]
    assert dict(found[4].texts) == {
        "pid": "4",
        "image": "images/1.jpg",
        "precision": "1.0",
        "choices": "['a', 'b']",
        "l2-category": "3",
        "skills": "['s', 't']",
    }
    assert [row.picture.read() for row in found] == [png(n) for n in range(8)]
    assert [found[n].picture.read() for n in (7, 1, 0, 5, 4)] == [png(n) for n in (7, 1, 0, 5, 4)]


def test_pictures_in_their_order_read_a_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.parquet", [{"image": {"bytes": png(n)}} for n in range(9)])
    found = [*parquet_rows(path)]
    opened = []

    def counted(*arguments: Any, of: Any = parquet.ParquetFile, **options: Any) -> Any:
        opened.append(arguments)
        return of(*arguments, **options)

    monkeypatch.setattr(parquet, "ParquetFile", counted)
    assert [row.picture.read() for row in found] == [png(n) for n in range(9)]
    assert len(opened) == 3


def test_equal_pictures_have_one_key(tmp_path: Path) -> None:
    one, two, three = parquet_rows(
        written(tmp_path / "a.parquet", [{"image": {"bytes": png(n)}} for n in (1, 1, 2)])
    )
    assert one.picture.key == two.picture.key != three.picture.key


def test_lists_of_pictures(tmp_path: Path) -> None:
    """A list of one is a picture, as in SEED-Bench; the frames of a video are not."""
    rows = [{"image": [{"bytes": png(n)} for n in range(count)]} for count in (1, 8)]
    one, video = parquet_rows(written(tmp_path / "a.parquet", rows))
    assert one.picture.read() == png(0)
    assert video.own_picture is None


def test_a_long_text(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="row 1 has a text of more than 64 KiB"):
        [*parquet_rows(written(tmp_path / "a.parquet", [{"question": "x" * 2**17}]))]


def test_what_is_no_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for data in (b"", b"PAR1" + b"x" * 100 + b"PAR1"):
        path.write_bytes(data)
        with pytest.raises(BenchmarkError, match="no sound Parquet"):
            [*parquet_rows(path)]
    with pytest.raises(BenchmarkError, match="no sound Parquet"):
        [*parquet_rows(tmp_path / "missing.parquet")]


def test_damage_inside_is_an_error_of_ours(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.parquet", [{"image": {"bytes": png(n)}, "question": "what?"} for n in range(3)]
    )
    sound = path.read_bytes()
    for at in range(4, len(sound), 11):
        path.write_bytes(sound[:at] + b"\xff\xff" + sound[at + 2 :])
        try:
            for row in parquet_rows(path):
                if row.own_picture is not None:
                    row.picture.read()
        except (BenchmarkError, ImageError):
            pass


def test_a_file_that_changed(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", [{"image": {"bytes": png(n)}} for n in range(3)])
    *_, last = parquet_rows(path)
    written(path, [{"image": {"bytes": png(0)}}])
    with pytest.raises(ImageError, match="has changed"):
        last.picture.read()
