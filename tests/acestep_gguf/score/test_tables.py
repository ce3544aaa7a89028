from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from acestep_gguf.errors import BenchmarkError
from acestep_gguf.score.tables import table_rows
from tests.support.benchmark_files import encoded, png, write_tsv


def test_a_row_may_have_the_picture_of_another(tmp_path: Path) -> None:
    path = write_tsv(
        tmp_path / "a.tsv", [{"index": 1, "image": encoded(3)}, {"index": 1000001, "image": 1}, {"index": 2}]
    )
    rows = table_rows(path)  # a row without a picture is left out, as VLMEvalKit does
    assert [row.texts["index"] for row in rows] == ["1", "1000001"]
    assert rows[0].picture == rows[1].picture


def test_a_picture_that_is_nowhere(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "a.tsv", [{"index": 1, "image": encoded()}, {"index": 2, "image": 77}])
    with pytest.raises(BenchmarkError, match="row 2 has the picture of row '77'"):
        table_rows(path)


@pytest.mark.parametrize("folder", ["", "images/SEED"])
def test_pictures_in_files(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / folder / "1.png").write_bytes(png())
    (row,) = table_rows(write_tsv(tmp_path / "SEED_local.tsv", [{"index": 1, "image_path": "1.png"}]))
    assert row.picture.read() == png()


@pytest.mark.parametrize("name", ["../1.png", "/etc/hostname", "a/../../b", "C:\\a", "\\\\host\\a", "."])
def test_paths_out_of_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(BenchmarkError, match="no path in its folder"):
        table_rows(write_tsv(tmp_path / "a.tsv", [{"index": 1, "image_path": name}]))


def test_a_folder_of_parquet_files(tmp_path: Path) -> None:
    for name, colour in (("testmini-1", 1), ("testmini-2", 2), ("test-1", 3)):
        rows = [{"image": {"bytes": png(colour)}, "question": name}]
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    assert [row.texts["question"] for row in table_rows(tmp_path, "testmini")] == ["testmini-1", "testmini-2"]
    with pytest.raises(BenchmarkError, match="no Parquet files"):
        table_rows(tmp_path, "val")


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(b"PK")
    with pytest.raises(BenchmarkError, match="missing is not there: give"):
        table_rows(tmp_path / "missing")
    with pytest.raises(BenchmarkError, match="neither TSV nor Parquet"):
        table_rows(path)
    with pytest.raises(BenchmarkError, match="no rows with pictures"):
        table_rows(write_tsv(tmp_path / "a.tsv", [{"index": 1}]))
