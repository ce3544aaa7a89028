"""Small files of benchmarks in their official forms, and items without one."""

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from acestep_gguf.score.item import Item


def png(colour: int = 0, side: int = 8) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (side, side), (colour % 256, 50, 99)).save(data, "PNG")
    return data.getvalue()


def encoded(colour: int = 0) -> str:
    return base64.b64encode(png(colour)).decode()


def write_tsv(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """As pandas' to_csv does: quotes only where they are needed, None is an empty cell."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(names)
        writer.writerows([row.get(name) for name in names] for row in rows)
    return path


@dataclass(frozen=True)
class NoPicture:
    key: str = "none"

    def read(self) -> bytes:
        raise AssertionError("nobody looks at it")


def item(
    answer: str | None,
    *,
    index: str = "1",
    group: str | None = None,
    choices: Sequence[str] = (),
    category: str = "",
    **extra: str,
) -> Item:
    return Item(
        index=index,
        group=group or index,
        picture=NoPicture(),
        question="What?",
        choices=dict(zip("ABCDEFGH", choices, strict=False)),
        answer=answer,
        category=category,
        extra=extra,
    )
