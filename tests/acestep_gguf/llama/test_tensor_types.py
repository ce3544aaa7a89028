"""A type that llama.cpp cannot compute with ends the process: such files are refused before it sees them."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as QType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acestep_gguf.bundle.decoder_info import decoder_info
from acestep_gguf.bundle.gguf_header import TENSOR_TYPES, read_gguf_header
from acestep_gguf.errors import BundleError
from tests.support.gguf_files import retype

TYPES = [QType(number) for number in TENSOR_TYPES]
VECTORS = ["output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "blk.0.attn_q.bias"]
MATRICES = ["token_embd.weight", "output.weight"] + [
    f"blk.0.{name}.weight"
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
]
NEVER = {QType.I8, QType.I16, QType.I32, QType.I64, QType.F64}

DECODES = """
import sys
from pathlib import Path

from acestep_gguf.llama.binding import Context, Model
from acestep_gguf.llama.params import ContextParams

for line in sys.stdin:
    with Model(Path(line.strip())) as model, Context(model, ContextParams(n_ctx=64)) as context:
        context.decode_tokens(list(range(40)), 0, n_outputs=1)
        context.decode_tokens([1], 40, n_outputs=1)
        context.logits()
    print("decoded", flush=True)
"""


@pytest.fixture(scope="module")
def decode() -> Iterator[Callable[[Path], bool]]:
    """Whether a process of its own decodes with a file and lives on."""
    with subprocess.Popen(
        [sys.executable, "-c", DECODES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        to_process, from_process = process.stdin, process.stdout

        def decode(path: Path) -> bool:
            print(path, file=to_process, flush=True)
            return from_process.readline() == "decoded\n"

        yield decode
        to_process.close()


@pytest.mark.parametrize("name", VECTORS + MATRICES)
def test_a_tensor_of_any_type_is_refused_or_computed_with(
    decoder_file: Path, tmp_path: Path, decode: Callable[[Path], bool], name: str
) -> None:
    path = tmp_path / "decoder.gguf"
    refused = set()
    for qtype in TYPES:
        retype(decoder_file, path, {name: qtype})
        try:
            decoder_info(read_gguf_header(path))
        except BundleError:
            refused.add(qtype)
        else:
            assert decode(path), f"llama.cpp ended on {name} in {qtype.name}"
    assert refused == (NEVER if name in MATRICES else set(TYPES) - {QType.F32})


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(types=st.fixed_dictionaries({name: st.sampled_from(sorted(set(TYPES) - NEVER)) for name in MATRICES}))
def test_matrices_of_mixed_types_are_computed_with(
    decoder_file: Path, tmp_path: Path, decode: Callable[[Path], bool], types: dict[str, QType]
) -> None:
    path = retype(decoder_file, tmp_path / "decoder.gguf", types)
    decoder_info(read_gguf_header(path))
    assert decode(path)
