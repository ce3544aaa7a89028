from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as QType
from gguf import GGUFReader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acestep_gguf.quantize.gguf_layout import ALIGNMENT, boolean, f32, i32s, lay_out, string, strings, u32
from acestep_gguf.quantize.recipes import TensorShape, TypeChoice

KINDS: dict[str, Any] = {
    "u32": (u32, st.integers(0, 2**32 - 1)),
    "f32": (f32, st.floats(width=32, allow_nan=False)),
    "boolean": (boolean, st.booleans()),
    "string": (string, st.text(st.characters(exclude_categories=["Cs"]), max_size=9)),
    "strings": (strings, st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), min_size=1)),
    "i32s": (i32s, st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1)),
}
shapes = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)) | st.tuples(st.integers(1, 9)), min_size=1)


@given(data=st.data(), shapes=shapes, kinds=st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_gguf_py_reads_what_was_laid_out(
    tmp_path: Path, data: st.DataObject, shapes: list[tuple[int, ...]], kinds: list[str]
) -> None:
    values = {f"key.{i}": (kind, data.draw(KINDS[kind][1])) for i, kind in enumerate(kinds)}
    tensors = [TensorShape(f"tensor.{i}", (*shape[:-1], 32 * shape[-1])) for i, shape in enumerate(shapes)]
    choices = {
        tensor.name: TypeChoice(qtype, qtype)
        for tensor in tensors
        for qtype in [data.draw(st.sampled_from([QType.F32, QType.F16, QType.Q8_0, QType.Q5_0]))]
    }
    layout = lay_out({key: KINDS[kind][0](value) for key, (kind, value) in values.items()}, tensors, choices)
    content = bytearray(layout.header + bytes(layout.n_bytes - len(layout.header)))
    for index, placed in enumerate(layout.tensors):
        assert placed.offset % ALIGNMENT == 0
        content[placed.offset : placed.offset + placed.n_bytes] = bytes([index % 256]) * placed.n_bytes
    path = tmp_path / "a.gguf"
    path.write_bytes(content)

    reader = GGUFReader(path)
    for key, (_, value) in values.items():
        assert reader.fields[key].contents() == value
    assert [tensor.name for tensor in reader.tensors] == [tensor.name for tensor in tensors]
    for index, (tensor, read) in enumerate(zip(tensors, reader.tensors, strict=True)):
        assert tuple(reversed(read.shape.tolist())) == tensor.shape
        assert read.tensor_type == choices[tensor.name].qtype
        assert np.asarray(read.data).tobytes() == bytes([index % 256]) * read.n_bytes


def test_bits_per_weight_are_over_all_tensors() -> None:
    tensors = [TensorShape("a", (2, 32)), TensorShape("b", (64,))]
    choices = {"a": TypeChoice(QType.Q8_0, QType.Q8_0), "b": TypeChoice(QType.F32, QType.F32)}
    assert lay_out({}, tensors, choices).bits_per_weight == pytest.approx((8.5 + 32) / 2)
