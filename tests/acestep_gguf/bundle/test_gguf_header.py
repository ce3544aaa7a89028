import struct
from pathlib import Path
from time import process_time
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acestep_gguf.bundle.gguf_header import (
    MAX_DEPTH,
    MAX_ENTRIES,
    REFUSED_TYPES,
    TENSOR_TYPES,
    GGUFHeader,
    Skipped,
    StringArray,
    read_gguf_header,
)
from acestep_gguf.errors import BundleError, UnsupportedModelError

U32, STRING, ARRAY = 4, 8, 9


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def gguf_bytes(
    entries: list[bytes],
    tensors: list[bytes],
    n_data: int = 4096,
    *,
    n_entries: int | None = None,
    n_tensors: int | None = None,
    version: int = 3,
) -> bytes:
    counts = (
        len(tensors) if n_tensors is None else n_tensors,
        len(entries) if n_entries is None else n_entries,
    )
    header = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(entries + tensors)
    return header + bytes(-len(header) % 32) + bytes(n_data)


def array(kind: int, count: int, items: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + items


# Two arrays: of one text, and of one array of two numbers.
NESTED = array(ARRAY, 2, array(STRING, 1, text("a")) + array(ARRAY, 1, array(U32, 2, bytes(8))))

SOUND = gguf_bytes(
    [
        entry("nested", ARRAY, NESTED),
        entry("general.architecture", STRING, text("qwen2")),
        entry("tokens", ARRAY, struct.pack("<IQ", STRING, 2) + text("a") + text("é")),
        entry("types", ARRAY, struct.pack("<IQ3i", 5, 3, 1, -2, 3)),
    ],
    [tensor("a", (32, 2), 8, 0), tensor("b", (4,), 0, 96)],
)


def read(tmp_path: Path, data: bytes) -> GGUFHeader:
    path = tmp_path / "file.gguf"
    path.write_bytes(data)
    return read_gguf_header(path)


def test_tensor_types_are_those_of_gguf_py() -> None:
    for number, ours in TENSOR_TYPES.items():
        theirs = gguf.GGMLQuantizationType(number)
        assert (ours.name, ours.block_size, ours.type_size) == (theirs.name, *gguf.GGML_QUANT_SIZES[theirs])


def test_reads_what_gguf_py_writes(tmp_path: Path) -> None:
    path = tmp_path / "written.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_uint8("u8", 200)
    writer.add_int16("i16", -300)
    writer.add_uint64("u64", 2**40)
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 1e300)
    writer.add_bool("yes", True)
    writer.add_string("name", "Größe")
    writer.add_array("strings", ["a", "", "日本"])
    writer.add_array("floats", [0.5, -1.0])
    writer.add_array("bools", [True, False])
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    writer.add_tensor("matrix", matrix)
    writer.add_tensor("vector", np.ones(5, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    header = read_gguf_header(path)
    expected: dict[str, Any] = {
        "general.architecture": "qwen2",
        "u8": 200,
        "i16": -300,
        "u64": 2**40,
        "f32": 0.5,
        "f64": 1e300,
        "yes": True,
        "name": "Größe",
    }
    assert {key: header.metadata[key] for key in expected} == expected
    strings, floats = header.metadata["strings"], header.metadata["floats"]
    assert isinstance(strings, StringArray)
    assert len(strings) == 3
    assert strings.read() == [b"a", b"", "日本".encode()]
    assert isinstance(floats, memoryview)
    assert np.asarray(floats).tolist() == [0.5, -1.0]
    first, second = header.tensors
    assert (first.name, first.type.name, first.dims, first.nbytes) == ("matrix", "F32", (4, 3), 48)
    assert (second.name, second.type.name, second.n_elements) == ("vector", "F16", 5)
    assert path.read_bytes()[first.offset :][:48] == matrix.tobytes()
    assert header.n_params == 17
    assert header.bits_per_weight == pytest.approx(8 * (48 + 10) / 17)


def test_what_nobody_reads_is_skipped(tmp_path: Path) -> None:
    """Arrays of arrays, and strings that are not UTF-8."""
    latin = struct.pack("<Q", 1) + "é".encode("latin-1")
    entries = [entry("nested", ARRAY, NESTED), entry("latin", STRING, latin), entry("last", U32, bytes(4))]
    header = read(tmp_path, gguf_bytes(entries, []))
    assert header.metadata == {
        "nested": Skipped(is_nested=True),
        "latin": Skipped(is_nested=False),
        "last": 0,
    }
    assert bytes(header.encoded["nested"]) == struct.pack("<I", ARRAY) + NESTED


def test_a_large_vocabulary_takes_less_than_a_tenth_of_a_second(tmp_path: Path) -> None:
    count = 152_064
    tokens = b"".join(text(f"token{number}") for number in range(count))
    data = gguf_bytes(
        [
            entry("tokens", ARRAY, struct.pack("<IQ", STRING, count) + tokens),
            entry("merges", ARRAY, struct.pack("<IQ", STRING, count) + tokens),
            entry("types", ARRAY, struct.pack("<IQ", 5, count) + bytes(4 * count)),
        ],
        [],
    )
    path = tmp_path / "large.gguf"
    path.write_bytes(data)
    seconds = []
    for _ in range(5):
        start = process_time()
        header = read_gguf_header(path)
        seconds.append(process_time() - start)
    assert len(header.metadata["merges"]) == count  # type: ignore[arg-type]
    assert min(seconds) < 0.1


HUGE = 2**64 - 1
DAMAGED = {
    "not GGUF": b"GGML" + SOUND[4:],
    "empty": b"",
    "version 1": gguf_bytes([], [], version=1),
    "big endian": gguf_bytes([], [], version=3 << 24),
    "more tensors than bytes": gguf_bytes([], [], n_tensors=60_000),
    "absurd number of tensors": gguf_bytes([], [], n_tensors=HUGE),
    "absurd number of entries": gguf_bytes([], [], n_entries=HUGE),
    "string longer than the file": gguf_bytes([entry("a", STRING, struct.pack("<Q", HUGE))], []),
    "array longer than the file": gguf_bytes([entry("a", ARRAY, struct.pack("<IQ", 4, 2**61))], []),
    "string array longer than the file": gguf_bytes([entry("a", ARRAY, struct.pack("<IQ", 8, 2**61))], []),
    "string in an array longer than the file": gguf_bytes(
        [entry("a", ARRAY, struct.pack("<IQQ", 8, 1, HUGE))], []
    ),
    "last string of an array over the end": gguf_bytes(
        [entry("a", ARRAY, struct.pack("<IQQ", 8, 1, 10**6))], []
    ),
    "array of arrays longer than the file": gguf_bytes([entry("a", ARRAY, array(ARRAY, 2**60, b""))], []),
    "array in an array longer than the file": gguf_bytes(
        [entry("a", ARRAY, array(ARRAY, 1, array(U32, 2**61, b"")))], []
    ),
    "array of an unknown type in an array": gguf_bytes(
        [entry("a", ARRAY, array(ARRAY, 1, array(13, 0, b"")))], []
    ),
    "too many arrays in an array": gguf_bytes(
        [entry("a", ARRAY, array(ARRAY, MAX_ENTRIES + 1, array(U32, 0, b"") * (MAX_ENTRIES + 1)))], []
    ),
    "arrays too deep in arrays": gguf_bytes([entry("a", ARRAY, array(ARRAY, 1, b"") * MAX_DEPTH)], []),
    "arrays in arrays without end": gguf_bytes([entry("a", ARRAY, array(ARRAY, 1, b"") * 100_000)], []),
    "unknown type": gguf_bytes([entry("a", 13, b"")], []),
    "array of an unknown type": gguf_bytes([entry("a", ARRAY, array(13, 0, b""))], []),
    "same key twice": gguf_bytes([entry("a", U32, bytes(4))] * 2, []),
    "key that is not UTF-8": gguf_bytes([struct.pack("<Q", 1) + b"\xff" + struct.pack("<II", U32, 0)], []),
    "long key": gguf_bytes([entry("k" * 70_000, U32, bytes(4))], []),
    "alignment 0": gguf_bytes([entry("general.alignment", U32, bytes(4))], []),
    "alignment 24": gguf_bytes([entry("general.alignment", U32, struct.pack("<I", 24))], []),
    "alignment as text": gguf_bytes([entry("general.alignment", STRING, text("32"))], []),
    "same tensor twice": gguf_bytes([], [tensor("a", (32,), 0, 0), tensor("a", (32,), 0, 128)]),
    "unknown tensor type": gguf_bytes([], [tensor("a", (32,), 99, 0)]),
    "five dimensions": gguf_bytes([], [tensor("a", (1, 1, 1, 1, 1), 0, 0)]),
    "no dimensions": gguf_bytes([], [tensor("a", (), 0, 0)]),
    "dimension 0": gguf_bytes([], [tensor("a", (0, 4), 0, 0)]),
    "product overflows": gguf_bytes([], [tensor("a", (2**32, 2**32, 2**32), 0, 0)]),
    "half a block": gguf_bytes([], [tensor("a", (33,), 8, 0)]),
    "overlapping tensors": gguf_bytes([], [tensor("a", (32,), 0, 0), tensor("b", (32,), 0, 64)]),
    "gap between tensors": gguf_bytes([], [tensor("a", (32,), 0, 0), tensor("b", (32,), 0, 256)]),
    "data over the end": gguf_bytes([], [tensor("a", (1024,), 0, 0)], n_data=4095),
    "offset over the end": gguf_bytes([], [tensor("a", (32,), 0, HUGE)]),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_damage_is_one_sentence(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BundleError) as caught:
        read(tmp_path, data)
    message = str(caught.value)
    assert "\n" not in message
    assert "file.gguf" in message


@pytest.mark.parametrize("number", REFUSED_TYPES)
def test_types_that_are_not_supported_are_named(tmp_path: Path, number: int) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes([], [tensor("a", (64,), number, 0)]))
    with pytest.raises(UnsupportedModelError, match=f"weights of the type {REFUSED_TYPES[number]}, which"):
        read_gguf_header(path)


def test_a_missing_file_and_a_folder_are_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(BundleError, match=r"cannot be read \([A-Z].*\): check the path"):
            read_gguf_header(path)
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(BundleError, match="is empty"):
        read_gguf_header(tmp_path / "empty.gguf")


@pytest.mark.parametrize("length", range(0, len(SOUND) - 4096 + 4, 7))
def test_a_file_cut_short_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(BundleError):
        read(tmp_path, SOUND[:length])


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    damage=st.lists(
        st.tuples(st.integers(0, len(SOUND) - 4096), st.binary(min_size=1, max_size=9)),
        min_size=1,
        max_size=4,
    )
)
def test_damaged_headers_raise_nothing_but_our_errors(
    tmp_path: Path, damage: list[tuple[int, bytes]]
) -> None:
    data = bytearray(SOUND)
    for position, patch in damage:
        data[position : position + len(patch)] = patch
    try:
        header = read(tmp_path, bytes(data))
    except (BundleError, UnsupportedModelError):
        return
    for info in header.tensors:
        assert info.offset + info.nbytes <= header.file_size
    for value in header.metadata.values():
        if isinstance(value, StringArray):
            assert sum(map(len, value.read())) <= header.file_size
