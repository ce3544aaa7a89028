"""A benchmark's table, TSV or Parquet, with the picture of every row."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from acestep_gguf.errors import BenchmarkError, MissingPackageError
from acestep_gguf.score.pictures import picture_file
from acestep_gguf.score.row import Row
from acestep_gguf.score.tsv import IMAGE, tsv_rows

SUFFIXES: Final = (".tsv", ".parquet")
IMAGE_PATH: Final = "image_path"


def table_rows(path: Path, prefix: str = "") -> list[Row]:
    """The rows of a TSV or Parquet file, or of a folder's Parquet files whose names begin with ``prefix``.

    A row's picture is its own, that of the row whose index it names, or the file that it names, beside the
    table or in VLMEvalKit's folder of pictures. Rows without any are left out, as VLMEvalKit does.

    Raises:
        BenchmarkError: nothing there can be read, or a row names no picture that there is.
        MissingPackageError: pyarrow is not installed.
    """
    if path.is_dir():
        paths = sorted(path.glob(f"{prefix}*.parquet"))
        if not paths:
            raise BenchmarkError(f"{path} has no Parquet files of the benchmark: give its official files.")
    else:
        paths = [path]
        if not path.exists():
            raise BenchmarkError(f"{path} is not there: give the benchmark's official file.")
    rows = [row for one in paths for row in _rows(one)]
    pictures = {row.texts.get("index"): row.own_picture for row in rows if row.own_picture is not None}
    folders = (path.parent, path.parent / "images" / path.stem.removesuffix("_local"))
    found = []
    for row in rows:
        picture = row.own_picture
        if picture is None and (index := row.texts.get(IMAGE)) is not None:
            if (picture := pictures.get(index)) is None:
                raise BenchmarkError(f"{row.where} has the picture of row {index[:64]!r}, which has none.")
        elif picture is None and (name := row.texts.get(IMAGE_PATH)) is not None:
            picture = picture_file(folders, name, row.where)
        if picture is not None:
            found.append(replace(row, own_picture=picture))
    if not found:
        raise BenchmarkError(f"{path} has no rows with pictures: give the benchmark's official file.")
    return found


def _rows(path: Path) -> Iterator[Row]:
    if path.suffix.lower() == ".tsv":
        return tsv_rows(path)
    if path.suffix.lower() != ".parquet":
        raise BenchmarkError(f"{path} is neither TSV nor Parquet: give the benchmark's official file.")
    try:
        from acestep_gguf.score.parquet import parquet_rows  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise MissingPackageError("pyarrow", "batch", what=f"{path} is Parquet, which") from error
    return parquet_rows(path)
