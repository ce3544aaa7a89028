from dataclasses import replace
from pathlib import Path

import pytest

from acestep_gguf.bundle.gguf_header import read_gguf_header
from acestep_gguf.errors import BundleError
from acestep_gguf.plan.decoder_memory import LAYER_TENSORS, decoder_weights


@pytest.mark.parametrize("name", LAYER_TENSORS)
def test_what_every_layer_has_is_not_missing(decoder_file: Path, name: str) -> None:
    header = read_gguf_header(decoder_file)
    tensors = tuple(
        replace(tensor, name=tensor.name + "_old") if tensor.name == f"blk.1.{name}" else tensor
        for tensor in header.tensors
    )
    with pytest.raises(BundleError, match=f"blk.1.{name} is missing"):
        decoder_weights(replace(header, tensors=tensors))


def test_matrices_are_matrices(decoder_file: Path) -> None:
    header = read_gguf_header(decoder_file)
    tensors = tuple(
        replace(tensor, dims=(*tensor.dims, 1)) if tensor.name == "blk.0.ffn_up.weight" else tensor
        for tensor in header.tensors
    )
    with pytest.raises(BundleError, match=r"blk\.0\.ffn_up\.weight is missing or of another shape"):
        decoder_weights(replace(header, tensors=tensors))
