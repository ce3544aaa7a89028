"""``quality --checkpoint``: a decoder in F32 is next to the checkpoint in transformers."""

from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.quality.compare import measure_quality
from tests.support.tiny_checkpoints import TinyCheckpoint, tiny_onevision

pytestmark = pytest.mark.parity


@pytest.mark.parametrize(
    "tiny",
    [
        TinyCheckpoint(image_size=42, dtype="F32"),
        TinyCheckpoint(architecture="llava_next", dtype="F32", seed=1),
        tiny_onevision(dtype="F32"),
    ],
    ids=lambda tiny: tiny.architecture,
)
def test_a_bundle_next_to_its_checkpoint(tmp_path: Path, tiny: TinyCheckpoint) -> None:
    from acestep_gguf.quality.reference import open_reference

    checkpoint = tiny.write(tmp_path / "c")
    convert_checkpoint(checkpoint, tmp_path / "b", ["F32", "Q8_0"])
    picture = tmp_path / "picture.png"
    Image.radial_gradient("L").resize((60, 40)).convert("RGB").save(picture)
    report = measure_quality(
        tmp_path / "b",
        [(picture, "How many are there?")],
        max_tokens=8,
        reference=partial(open_reference, checkpoint, max_tokens=8),
    )
    assert [found.decoder for found in report.candidates][:2] == ["checkpoint", "F32"]
    best, ours = report.candidates[:2]
    assert best.kl_divergence.mean.value == pytest.approx(0, abs=1e-9)
    assert best.n_same == 1
    assert ours.kl_divergence.p99.value < 1e-5
    assert (ours.top_1.value, ours.n_same) == (1.0, 1)
    assert ours.embeds.min_cosine > 1 - 1e-6
    assert ours.embeds.min_centred_cosine > 1 - 1e-5
    assert ours.answers[0].text == best.answers[0].text
