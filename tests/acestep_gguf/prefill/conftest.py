"""A bundle with int8 layers of each kind of decoder, and of each way to rotate."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.llama.binding import Context, Model
from acestep_gguf.llama.params import ContextParams
from acestep_gguf.options import CacheType, FlashAttention
from acestep_gguf.plan.bundle_model import BundleModel, DecoderModel
from acestep_gguf.prefill.prompt_reader import PromptReader
from tests.support.tiny_checkpoints import TinyCheckpoint

KINDS = {
    "Qwen2": TinyCheckpoint(),
    "Qwen2, YaRN, tied": TinyCheckpoint(yarn=True, tied=True, dtype="F32"),
    "Qwen2, one key for all queries": TinyCheckpoint(n_kv_heads=1),
    "Qwen3": TinyCheckpoint(decoder="qwen3", head_dim=32),
    "Llama": TinyCheckpoint(decoder="llama", n_kv_heads=4),
    "Llama 3": TinyCheckpoint(decoder="llama3", llama3_rope=True),
    "Mistral": TinyCheckpoint(decoder="mistral", head_dim=32, sliding_window=None),
}
N = 40
RNG = np.random.default_rng(0)
EMBEDS = (RNG.standard_normal((N, 256)) * 0.05).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Subject:
    """A checkpoint, its bundle, and the bundle's decoder in float32."""

    checkpoint: Path
    folder: Path
    bundle: Bundle
    decoder: DecoderModel
    weights: Model

    def reader(self) -> PromptReader:
        assert self.bundle.prefill is not None
        return PromptReader.open(self.folder, self.bundle.prefill, self.decoder, n_threads=1)

    def context(
        self,
        cache_type: CacheType = "f32",
        flash_attn: FlashAttention = "on",
        *,
        n_seq_max: int = 1,
        n_batch: int = 128,
    ) -> Context:
        params = ContextParams(
            n_ctx=128,
            n_batch=n_batch,
            n_seq_max=n_seq_max,
            n_outputs_max=n_seq_max,
            type_k=cache_type,
            type_v=cache_type,
            flash_attn=flash_attn,
        )
        return Context(self.weights, params)


def opened(checkpoint: TinyCheckpoint, folder: Path) -> Iterator[Subject]:
    written = checkpoint.write(folder / "checkpoint")
    bundle = convert_checkpoint(written, folder / "bundle", ("F32", "Q4_K_M"), prefill=True)
    decoder = BundleModel(folder / "bundle").decoder("F32")
    with Model(decoder.header.path) as weights:
        yield Subject(written, folder / "bundle", bundle, decoder, weights)


@pytest.fixture(scope="session", params=KINDS)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    """One of each kind."""
    yield from opened(KINDS[request.param], tmp_path_factory.mktemp("kind"))


@pytest.fixture(scope="session")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    yield from opened(KINDS["Qwen2"], tmp_path_factory.mktemp("qwen2"))
