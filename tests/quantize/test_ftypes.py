"""Every ftype, byte for byte what llama-quantize makes: all rules of all recipes, in files of few rows."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as QType
from numpy.typing import NDArray

from acestep_gguf.bundle.names import FTYPES, LLAMA_FTYPE, Ftype
from acestep_gguf.errors import ImatrixError, UsageError
from acestep_gguf.quantize.recipe_tables import RECIPES, WEIGHED_FTYPES
from acestep_gguf.quantize.requantize import plan_quantization, quantize_gguf
from acestep_gguf.quantize.steering import STEERABLE_TYPES, parse_steering
from tests.support.imatrix_files import random_sums, write_gguf_imatrix
from tests.support.llama_quantize import llama_quantize, read_tensors
from tests.support.thin_decoders import write_thin_decoder

SHAPES: dict[str, dict[str, Any]] = {
    "two heads share": {},
    "four heads share": {"n_sharing": 4},
    "four heads share, tied": {"n_sharing": 4, "tied": True},
    "no heads share": {"n_sharing": 1, "arch": "qwen3", "n_layers": 8},
    "three heads share, tied": {"n_sharing": 3, "tied": True, "n_layers": 9},
    "Llama": {"arch": "llama", "n_sharing": 4},
    "Llama, tied": {"arch": "llama", "n_sharing": 2, "tied": True, "n_layers": 17},
    "70B": {"arch": "llama", "n_sharing": 8, "n_layers": 80},
    "70B, Qwen2": {"n_sharing": 8, "n_layers": 80},
    "rows of 32": {"n_embd": 288, "n_ff": 512},
    "rows of 32, tied": {"n_embd": 512, "n_ff": 352, "tied": True},
    "rows of 8": {"n_embd": 264, "n_ff": 72, "n_layers": 3},
}
# Most of those that 80 layers change, and one that they do not.
RAISED_FTYPES: tuple[Ftype, ...] = ("Q3_K_M", "Q4_K_M", "IQ3_S", "IQ2_XS")

# Eight threads quantize the same rows at once, all for the first time.
FIRST_USE = """
import threading
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from gguf import GGMLQuantizationType as QType
from acestep_gguf.quantize.ggml import quantize_rows

rows = np.random.default_rng(0).standard_normal((2, 256)).astype(np.float32)
start = threading.Barrier(8)

def quantize(qtype):
    start.wait()
    return quantize_rows(rows, qtype, np.ones(256, np.float32)).tobytes()

with ThreadPoolExecutor(8) as pool:
    for qtype in (QType.IQ2_XXS, QType.IQ3_XXS):
        first = set(pool.map(quantize, [qtype] * 8))
        assert first == {quantize_rows(rows, qtype, np.ones(256, np.float32)).tobytes()}, qtype
print("same")
"""


def weighed(source: Path, imatrix: Path) -> tuple[Path, dict[str, NDArray[np.float32]]]:
    """An imatrix of ``source``, and its mean squares."""
    sums, counts = random_sums(source)
    write_gguf_imatrix(imatrix, sums, dict.fromkeys(counts, 4.0))
    return imatrix, {name: values / np.float32(4) for name, values in sums.items()}


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("is_weighed", [False, True])
def test_every_file_is_llama_quantizes(tmp_path: Path, shape: str, is_weighed: bool) -> None:
    source = write_thin_decoder(tmp_path / "source.gguf", **SHAPES[shape])
    imatrix, means = weighed(source, tmp_path / "imatrix.gguf")
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    for ftype in RAISED_FTYPES if "70B" in shape else FTYPES:
        if is_weighed:
            quantize_gguf(source, ours, ftype, imatrix=imatrix)
            llama_quantize(source, theirs, ftype, imatrix=means)
            assert read_tensors(ours) == read_tensors(theirs), ftype
        elif ftype not in WEIGHED_FTYPES:
            quantize_gguf(source, ours, ftype)
            assert ours.read_bytes() == llama_quantize(source, theirs, ftype).read_bytes(), ftype


@pytest.mark.parametrize("ftype", sorted(WEIGHED_FTYPES))
def test_ftypes_of_few_bits_need_an_imatrix(tmp_path: Path, ftype: Ftype) -> None:
    source = write_thin_decoder(tmp_path / "source.gguf", n_layers=1)
    with pytest.raises(UsageError, match=f"{ftype} is garbage without an importance matrix: give one with"):
        quantize_gguf(source, tmp_path / "out.gguf", ftype)
    assert not (tmp_path / "out.gguf").exists()


def test_every_ftype_that_can_be_made_has_a_number_and_a_recipe() -> None:
    assert set(FTYPES) == set(RECIPES)
    assert set(LLAMA_FTYPE) - set(FTYPES) == {"TQ1_0", "TQ2_0", "MXFP4_MOE"}


@pytest.mark.slow
@pytest.mark.parametrize("qtype", STEERABLE_TYPES)
def test_with_an_imatrix_every_type_can_be_asked_for(tmp_path: Path, qtype: QType) -> None:
    source = write_thin_decoder(tmp_path / "source.gguf", n_layers=2)
    imatrix, means = weighed(source, tmp_path / "imatrix.gguf")
    steering = parse_steering([f"attn_q={qtype.name}", f"blk.1.ffn={qtype.name}"])
    quantize_gguf(source, tmp_path / "ours.gguf", "Q4_K_M", steering=steering, imatrix=imatrix)
    theirs = llama_quantize(
        source,
        tmp_path / "theirs.gguf",
        "Q4_K_M",
        tensor_types={"attn_q": qtype, "blk.1.ffn": qtype},
        imatrix=means,
    )
    assert read_tensors(tmp_path / "ours.gguf") == read_tensors(theirs)


@pytest.mark.parametrize("ftype", ["Q4_K_M", "Q2_K"])
@pytest.mark.parametrize("qtype", ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"])
def test_without_an_imatrix_types_of_few_bits_are_refused(tmp_path: Path, ftype: Ftype, qtype: str) -> None:
    source = write_thin_decoder(tmp_path / "source.gguf", n_layers=1)
    with pytest.raises(UsageError, match=rf"blk.0.ffn_up.weight is garbage as {qtype} without"):
        plan_quantization(source, tmp_path / "out.gguf", ftype, steering=parse_steering([f"ffn_up={qtype}"]))


def test_a_tensor_that_the_imatrix_does_not_know_gets_no_few_bits(tmp_path: Path) -> None:
    source = write_thin_decoder(tmp_path / "source.gguf", n_layers=2)
    sums, counts = random_sums(source)
    del sums["blk.1.ffn_gate.weight"]
    imatrix = write_gguf_imatrix(tmp_path / "imatrix.gguf", sums, counts)
    with pytest.raises(
        ImatrixError, match=r"no entry for blk.1.ffn_gate.weight, which is garbage as IQ3_XXS"
    ):
        quantize_gguf(source, tmp_path / "out.gguf", "IQ3_XXS", imatrix=imatrix)
    quantize_gguf(source, tmp_path / "out.gguf", "Q4_K_M", imatrix=imatrix)


@pytest.mark.parametrize("qtype", ["IQ2_XXS", "IQ2_XS", "IQ1_S"])
def test_embeddings_that_ggml_cannot_make_are_refused(tmp_path: Path, qtype: str) -> None:
    """An assertion of ggml would end the process; an imatrix never has an entry for embeddings."""
    source = write_thin_decoder(tmp_path / "source.gguf", n_layers=1)
    imatrix, _ = weighed(source, tmp_path / "imatrix.gguf")
    steering = parse_steering(token_embedding_type=qtype)
    with pytest.raises(ImatrixError, match=r"no entry for token_embd\.weight"):
        quantize_gguf(source, tmp_path / "out.gguf", "IQ2_XS", imatrix=imatrix, steering=steering)


@pytest.mark.slow
def test_tables_of_few_bits_are_made_once_for_all_threads() -> None:
    """In a process of its own, so that the first use is here."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST_USE], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stdout) == (0, "same\n"), done.stderr
