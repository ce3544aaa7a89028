"""Every tensor of every file, byte for byte what llama.cpp makes of our F32 file."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as QType
from numpy.typing import NDArray

from acestep_gguf.bundle.names import FTYPES as ALL_FTYPES
from acestep_gguf.bundle.names import Ftype
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.errors import CheckpointError
from acestep_gguf.quantize.gguf_layout import lay_out
from acestep_gguf.quantize.one_pass import GgufOutput, buffer_bytes, write_ggufs
from acestep_gguf.quantize.recipes import TensorShape, choose_types
from acestep_gguf.quantize.staging import Staging
from acestep_gguf.quantize.steering import parse_steering
from tests.support.imatrix_files import random_sums, write_gguf_imatrix
from tests.support.llama_quantize import llama_quantize, read_tensors
from tests.support.tiny_checkpoints import Decoder, TinyCheckpoint, write_safetensors

FTYPES: tuple[Ftype, ...] = ("Q4_K_M", "Q5_K_M", "Q8_0")

DEMO = Path(__file__).parents[2] / "acestep_gguf" / "demo"

# Shapes that hit every rule of the recipes, and the types that must come up.
SHAPES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "more bits": ({"n_layers": 16}, {"Q4_K", "Q5_K", "Q6_K", "Q8_0"}),
    "Llama": ({"n_layers": 16, "decoder": "llama"}, {"Q4_K", "Q5_K", "Q6_K", "Q8_0"}),
    "Qwen3": ({"n_layers": 4, "decoder": "qwen3"}, {"Q4_K", "Q5_K", "Q6_K", "Q8_0"}),
    "Llama 3.2": (
        {"n_layers": 4, "decoder": "llama3", "llama3_rope": True, "tied": True},
        {"F32", "Q4_K", "Q5_K", "Q6_K", "Q8_0"},
    ),
    "tied": ({"n_layers": 4, "tied": True}, {"Q4_K", "Q5_K", "Q6_K", "Q8_0"}),
    "rows of 32": (
        {"n_layers": 8, "hidden_size": 288, "n_heads": 6, "n_kv_heads": 3, "intermediate_size": 512},
        {"Q4_K", "Q5_0", "Q5_1", "Q6_K", "Q8_0"},
    ),
    "rows of 32, tied": (
        {"n_layers": 8, "hidden_size": 192, "n_heads": 6, "intermediate_size": 352, "tied": True},
        {"Q5_0", "Q5_1", "Q8_0"},
    ),
    "rows of 8": (
        {"n_layers": 3, "hidden_size": 48, "n_heads": 2, "n_kv_heads": 1, "intermediate_size": 72},
        {"F16"},
    ),
}


def assert_as_llama_cpp(
    checkpoint: Path, folder: Path, ftypes: Sequence[Ftype] = ("Q4_K_M", "Q5_K_M", "Q8_0", "F16", "BF16")
) -> set[str]:
    """Convert to ``ftypes``, compare each with llama.cpp's, and return the types that came up."""
    bundle = convert_checkpoint(checkpoint, folder / "bundle", [*ftypes, "F32"], name="Tiny")
    paths = {ftype: folder / "bundle" / record.file for ftype, record in bundle.decoders.files.items()}
    qtypes = set()
    for ftype in ftypes:
        expected = read_tensors(llama_quantize(paths["F32"], folder / "expected.gguf", ftype))
        ours = read_tensors(paths[ftype])
        assert ours.keys() == expected.keys()
        assert [name for name in ours if ours[name] != expected[name]] == []
        qtypes |= {qtype for qtype, _ in ours.values()}
    return qtypes


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_every_tensor_is_byte_for_byte_llama_cpps(tmp_path: Path, shape: str) -> None:
    options, qtypes = SHAPES[shape]
    checkpoint = TinyCheckpoint(dtype="F32", **options).write(tmp_path / "checkpoint")
    assert assert_as_llama_cpp(checkpoint, tmp_path) >= qtypes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("decoder", "n_kv_heads", "is_70b"),
    [("qwen2", 1, True), ("llama", 1, True), ("llama", 4, False), ("qwen3", 1, False)],
)
def test_the_rule_for_80_layers_is_llama_cpps(
    tmp_path: Path, decoder: Decoder, n_kv_heads: int, is_70b: bool
) -> None:
    tiny = TinyCheckpoint(
        decoder=decoder, n_layers=80, intermediate_size=256, n_kv_heads=n_kv_heads, dtype="F32"
    )
    qtypes = assert_as_llama_cpp(tiny.write(tmp_path / "checkpoint"), tmp_path, ["Q4_K_M"])
    assert ("Q5_K" in qtypes) == is_70b


@pytest.mark.slow
@pytest.mark.skipif(not (DEMO / "model.safetensors").exists(), reason="the demo checkpoint is not there")
def test_every_tensor_of_the_demo_is_byte_for_byte_llama_cpps(tmp_path: Path) -> None:
    assert assert_as_llama_cpp(DEMO, tmp_path) >= {"Q4_K", "Q5_K", "Q6_K", "Q8_0"}


def test_a_steered_and_weighed_conversion_is_byte_for_byte_llama_cpps(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint(dtype="F32", n_layers=3, intermediate_size=256).write(tmp_path / "checkpoint")
    plain = convert_checkpoint(checkpoint, tmp_path / "plain", ["F32"], name="Tiny")
    source = tmp_path / "plain" / plain.decoder("F32").file
    sums, counts = random_sums(source)
    imatrix = write_gguf_imatrix(tmp_path / "imatrix", sums, dict.fromkeys(counts, 4.0))
    bundle = convert_checkpoint(
        checkpoint,
        tmp_path / "bundle",
        ["Q4_K_M", "Q5_K_M", "Q8_0"],
        steering=parse_steering(["ffn_up=IQ4_XS", "attn_q.weight=Q4_0"], "Q5_1", "Q3_K"),
        imatrix=imatrix,
    )
    for ftype, record in bundle.decoders.files.items():
        expected = llama_quantize(
            source,
            tmp_path / "expected.gguf",
            ftype,
            imatrix={name: values / np.float32(4) for name, values in sums.items()},
            tensor_types={"ffn_up": QType.IQ4_XS, "attn_q.weight": QType.Q4_0},
            output_tensor_type=QType.Q5_1,
            token_embedding_type=QType.Q3_K,
        )
        assert read_tensors(tmp_path / "bundle" / record.file) == read_tensors(expected)


@pytest.mark.slow
@pytest.mark.parametrize("n_threads", [1, 3])
def test_threads_change_nothing(tmp_path: Path, n_threads: int) -> None:
    checkpoint = TinyCheckpoint(n_layers=3).write(tmp_path / "checkpoint")
    bundles = [
        convert_checkpoint(checkpoint, tmp_path / str(threads), threads=threads, name="Tiny")
        for threads in (2, n_threads)
    ]
    assert bundles[0] == bundles[1]


def test_weights_too_large_for_a_type_are_named(tmp_path: Path) -> None:
    tiny = TinyCheckpoint()
    checkpoint = tiny.write(tmp_path / "checkpoint")
    weights = tiny.tensors()
    weights["language_model.model.layers.1.mlp.up_proj.weight"][5, 5] = 1e30
    write_safetensors(checkpoint / "model.safetensors", weights, "F32")
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_up\.weight has weights, .* too large for F16"):
        convert_checkpoint(checkpoint, tmp_path / "bundle", ["F16"])
    assert not (tmp_path / "bundle").exists()
    bundle = convert_checkpoint(checkpoint, tmp_path / "bundle", ["F32"])
    stored = read_tensors(tmp_path / "bundle" / bundle.decoder().file)["blk.1.ffn_up.weight"][1]
    assert np.frombuffer(stored, "<f4").max() == np.float32(1e30)


class CountingSource:
    """A tensor that remembers how often each of its rows was read."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape
        self.n_read = np.zeros(int(np.prod(shape[:-1])), int)
        self._weights = np.random.default_rng(0).standard_normal(shape).astype(np.float32)

    def read_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        self.n_read[start:stop] += 1
        return self._weights.reshape(-1, self.shape[-1])[start:stop]


def write(folder: Path, tensors: dict[str, CountingSource], steps: Sequence[int]) -> list[bytes]:
    """Write a file for each of ``steps``; each fails after so many of its tensors, and is carried on with."""
    shapes = [TensorShape(name, source.shape) for name, source in tensors.items()]
    layouts = [lay_out({}, shapes, choose_types(ftype, shapes)) for ftype in FTYPES]
    stamps = [""] * len(tensors)

    def start(staging: Staging) -> list[GgufOutput]:
        files = [
            staging.create_resumable(f"{number}.gguf", identity="", stamps=stamps)
            for number in range(len(layouts))
        ]
        return [GgufOutput(layout, file) for layout, file in zip(layouts, files, strict=True)]

    def fail() -> None:
        with Staging(folder) as staging:
            for output, n_steps in zip(start(staging), steps, strict=True):
                # Only the first tensors: as if the process had died on the way.
                head = replace(output.layout, tensors=output.layout.tensors[:n_steps])
                write_ggufs(list(tensors.items())[:n_steps], [replace(output, layout=head)], n_threads=2)
            raise KeyboardInterrupt

    if any(steps):
        with pytest.raises(KeyboardInterrupt):
            fail()
    for source in tensors.values():
        source.n_read[:] = 0
    with Staging(folder) as staging:
        outputs = start(staging)
        assert [output.file.n_steps for output in outputs] == list(steps)
        write_ggufs(list(tensors.items()), outputs, n_threads=2)
        staging.publish()
    return [(folder / f"{number}.gguf").read_bytes() for number in range(len(layouts))]


@pytest.mark.slow
@pytest.mark.parametrize("steps", [(1, 3, 2), (4, 4, 1), (4, 4, 4)])
def test_each_file_is_carried_on_with_from_its_own_last_tensor(
    tmp_path: Path, steps: tuple[int, ...]
) -> None:
    tensors = {
        "token_embd.weight": CountingSource(500, 256),
        "blk.0.attn_v.weight": CountingSource(3000, 1024),
        "blk.0.attn_norm.weight": CountingSource(256),
        "output.weight": CountingSource(500, 256),
    }
    expected = write(tmp_path / "expected", tensors, (0, 0, 0))
    assert all((source.n_read == 1).all() for source in tensors.values())
    assert write(tmp_path / "files", tensors, steps) == expected
    # What every file has is not read again.
    for number, source in enumerate(tensors.values()):
        assert (source.n_read == (number >= min(steps))).all()


@pytest.mark.parametrize("n_threads", [1, 2, 64, 1024])
def test_chunks_in_flight_are_bounded_whatever_is_asked_for(n_threads: int) -> None:
    shapes = [TensorShape("output.weight", (152064, 5120)), TensorShape("blk.0.ffn_up.weight", (27648, 5120))]
    layouts = [lay_out({}, shapes, choose_types(ftype, shapes)) for ftype in ALL_FTYPES]
    for some in (layouts[:1], layouts):
        assert 2**20 < buffer_bytes(some, n_threads) <= 2**30
