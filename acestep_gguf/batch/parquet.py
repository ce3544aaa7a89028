"""A table as Parquet, whose columns each have one type, written in groups of rows."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, BinaryIO, Final, get_args, get_type_hints

import pyarrow
from pyarrow import parquet

from acestep_gguf.batch.rows import Row, as_text

ROWS_AT_ONCE: Final = 1_000
MOST_INT64: Final = 2**63 - 1
# A column of anything else is one of texts.
TYPES: Final = (
    ({bool}, pyarrow.bool_()),
    ({int}, pyarrow.int64()),
    ({int, float}, pyarrow.float64()),
)


def write_parquet(file: BinaryIO, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write ``rows``, which are gone through twice: their values by the names of ``columns``."""
    types = _types(rows, columns)
    schema = pyarrow.schema(list(types.items()))
    remaining = iter(rows)
    with parquet.ParquetWriter(file, schema) as writer:
        while some := list(islice(remaining, ROWS_AT_ONCE)):
            values = {
                name: [_value(row.get(name), is_text=pyarrow.types.is_string(kind)) for row in some]
                for name, kind in types.items()
            }
            writer.write_table(pyarrow.table(values, schema=schema))


def _types(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> dict[str, Any]:
    """Own columns have the same types in every table, those of ids and carried fields are found."""
    kinds: defaultdict[str, set[type]] = defaultdict(set)
    found = [name for name in columns if name not in ROW_TYPES]
    for row in rows:
        for name in found:
            if (value := row.get(name)) is not None:
                too_large = isinstance(value, int) and abs(value) > MOST_INT64
                kinds[name].add(str if too_large else type(value))
    return {name: ROW_TYPES.get(name) or _type(kinds[name]) for name in columns}


def _type(kinds: set[type]) -> Any:
    return next((kind for these, kind in TYPES if kinds and kinds <= these), pyarrow.string())


# Of all columns of our own but ``id``, whose type is that of the input's.
ROW_TYPES: Final = {
    name: _type({*get_args(hint)} - {type(None)})
    for name, hint in get_type_hints(Row).items()
    if name != "id"
}


def _value(value: Any, *, is_text: bool) -> Any:
    return as_text(value) if is_text and value is not None else value
