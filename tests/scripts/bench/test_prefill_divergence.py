from pathlib import Path

import numpy as np
import pytest

from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.plan.bundle_model import DecoderModel
from acestep_gguf.prefill.prompt_reader import PromptReader
from acestep_gguf.prompt.segments import ImageInput, Segment
from scripts.bench.gguf_int8_layers import write_int8_layers
from scripts.bench.prefill_divergence import Asked, Found
from tests.support.tiny_checkpoints import TinyCheckpoint

N_ROWS = 40
QUESTION, ANSWER = (5, 6, 7), [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a Llama, whose queries and keys have another order of rows in GGUF files."""
    folder = tmp_path_factory.mktemp("llama")
    checkpoint = TinyCheckpoint(decoder="llama", n_kv_heads=2).write(folder / "checkpoint")
    convert_checkpoint(checkpoint, folder / "bundle", ("F32",), prefill=True)
    return folder / "bundle"


def test_layers_from_a_gguf_are_those_from_the_checkpoint(bundle: Path, tmp_path: Path) -> None:
    (decoder,) = bundle.glob("*.gguf")
    record = write_int8_layers(decoder, tmp_path)
    for name in (record.file, record.data.file):
        assert (tmp_path / name).read_bytes() == (bundle / name).read_bytes()


def test_only_reading_in_int8_diverges_from_float32(bundle: Path, tmp_path: Path) -> None:
    (path,) = bundle.glob("*.gguf")
    decoder = DecoderModel.read(path)
    reader = PromptReader.open(tmp_path, write_int8_layers(path, tmp_path), decoder, n_threads=1)
    embeds = np.random.default_rng(0).standard_normal((N_ROWS, decoder.shape.n_embd), np.float32)
    embeds *= 0.05
    picture = ImageInput(b"picture", N_ROWS)
    prompt: list[Segment] = [picture, QUESTION]
    rows = {}
    for name, reads in (("float32", None), ("again", None), ("int8", reader)):
        with Asked(path, reads, n_ctx=256, is_exact=True) as asked:
            first = asked.read(prompt, {picture.key: embeds})
            asked.write(first, frozenset())
            rows[name] = asked.expect(first, ANSWER)
    assert rows["float32"].shape == (len(ANSWER), decoder.shape.n_vocab)
    same, int8 = Found(), Found()
    same.add(rows["float32"], rows["again"])
    int8.add(rows["float32"], rows["int8"])
    assert same.divergences[0].max() == 0
    assert 0 < int8.divergences[0].min() < int8.divergences[0].max() < 2e-3
