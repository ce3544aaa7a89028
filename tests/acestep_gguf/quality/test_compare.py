from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.engine.engine import AceStep
from acestep_gguf.errors import ImageError, UsageError
from acestep_gguf.quality.answers import BundleAnswerer, EncodedPicture, Floats, GreedyAnswer
from acestep_gguf.quality.compare import measure_quality
from acestep_gguf.vision.image import pixel_values
from acestep_gguf.vision.tower import VisionTower

N_TOKENS = 8


@pytest.fixture(scope="module")
def shown(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> EncodedPicture:
    from PIL import Image

    path = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.linear_gradient("L").resize((60, 40)).convert("RGB").save(path)
    bundle = Bundle.read(tiny_bundle)
    tower = VisionTower(tiny_bundle, bundle, "float32", n_threads=1)
    return EncodedPicture(path, tower.encode(pixel_values(path, bundle.tower()[1])[0]).embeds)


@pytest.fixture(scope="module")
def answerer(tiny_bundle: Path) -> Iterator[BundleAnswerer]:
    with BundleAnswerer(tiny_bundle, Bundle.read(tiny_bundle), "F32", max_tokens=N_TOKENS) as opened:
        yield opened


def test_answers_are_those_of_the_engine(
    answerer: BundleAnswerer, shown: EncodedPicture, tiny_bundle: Path
) -> None:
    written = answerer.write("How many?", shown)
    with AceStep(tiny_bundle, quant="F32", vision="float32") as model:
        expected = model.generate("How many?", [shown.path], max_tokens=N_TOKENS)
    assert written.text == expected.text
    assert written.tokens[: len(expected.tokens)] == expected.tokens
    assert written.seconds > 0


def test_logits_of_an_answer_choose_it(answerer: BundleAnswerer, shown: EncodedPicture) -> None:
    tokens = answerer.write("How many?", shown).tokens
    logits = answerer.logits("How many?", shown, tokens)
    assert logits.shape[0] == len(tokens)
    assert logits.argmax(axis=1).tolist() == list(tokens)
    first = answerer.logits("How many?", shown, tokens[:1])
    np.testing.assert_allclose(first[0], logits[0], atol=1e-3)


def test_another_picture_is_another_answer(answerer: BundleAnswerer, shown: EncodedPicture) -> None:
    tokens = answerer.write("How many?", shown).tokens
    other = EncodedPicture(shown.path, shown.embeds[::-1] * 3)
    assert not np.allclose(
        answerer.logits("How many?", shown, tokens), answerer.logits("How many?", other, tokens)
    )


@pytest.mark.slow
def test_every_decoder_and_tower_is_compared_with_the_best(tiny_bundle: Path, shown: EncodedPicture) -> None:
    asked = [(shown.path, "How many?"), (shown.path, "What is this?")]
    told: list[str] = []
    report = measure_quality(tiny_bundle, asked, max_tokens=N_TOKENS, on_candidate=told.append)
    bundle = Bundle.read(tiny_bundle)
    best, *others = report.candidates
    assert (best.decoder, best.tower) == ("F32", "float32")
    assert (best.kl_divergence.p99.value, best.top_1.value, best.n_same) == (0.0, 1.0, 2)
    assert best.embeds.min_cosine == pytest.approx(1)
    assert best.embeds.min_centred_cosine == pytest.approx(1)
    assert {found.decoder for found in report.candidates} == set(bundle.decoders.files)
    assert {found.tower for found in report.candidates} == set(bundle.vision.files if bundle.vision else ())
    quantized = next(found for found in others if found.decoder == "Q4_K_M" and found.tower == "float32")
    divergence = quantized.kl_divergence
    assert 1e-6 < divergence.mean.value < divergence.p99.value
    assert divergence.p90.value < divergence.p99.value
    assert divergence.mean.low is not None
    assert divergence.mean.low < divergence.mean.value
    assert quantized.perplexity.value > best.perplexity.value  # the best one chose these tokens
    assert quantized.embeds.cosine == pytest.approx(1)
    int8 = next(found for found in others if found.tower == "int8").embeds
    assert int8.min_centred_cosine < int8.centred_cosine < int8.cosine < 1
    assert best.bytes - quantized.bytes == bundle.decoder("F32").bytes - bundle.decoder("Q4_K_M").bytes
    assert [asked.question for asked in report.asked] == ["How many?", "What is this?"]
    assert told[-1] in bundle.decoders.files


@dataclass
class Parrot:
    """A reference that says the same to all, and is sure of it."""

    name: str = "checkpoint"
    tower: str = "checkpoint"
    bytes: int = 7
    n_vocab: int = 600

    def image_embeds(self, path: Path) -> Floats:
        return np.ones((4, 256), np.float32)

    def write(self, question: str, shown: EncodedPicture) -> GreedyAnswer:
        return GreedyAnswer((1, 2, 3), "said", 0.5)

    def logits(self, question: str, shown: EncodedPicture, tokens: Sequence[int]) -> Floats:
        return 50 * np.eye(self.n_vocab, dtype=np.float32)[list(tokens)]


def test_a_reference_comes_first_and_its_answers_are_what_counts(
    tiny_bundle: Path, shown: EncodedPicture
) -> None:
    @contextmanager
    def parrot() -> Iterator[Parrot]:
        yield Parrot()

    report = measure_quality(tiny_bundle, [(shown.path, "Who?")], max_tokens=N_TOKENS, reference=parrot)
    best, other, *_ = report.candidates
    assert (best.decoder, best.tower, best.bytes, best.answer_s) == ("checkpoint", "checkpoint", 7, 0.5)
    assert best.answers[0].text == "said"
    assert (best.kl_divergence.mean.value, best.top_1.value) == (0.0, 1.0)
    assert best.embeds.cosine == pytest.approx(1)
    assert best.perplexity.value == pytest.approx(1)
    assert other.kl_divergence.mean.value > 1  # random weights are sure of nothing
    assert other.kl_divergence.mean.low is None  # of one answer
    assert other.perplexity.value > 10
    assert other.embeds.cosine < 0.9
    assert other.answers[0].n_alike < 3


def test_bad_requests(tiny_bundle: Path, tmp_path: Path) -> None:
    for asked, max_tokens in (([], 5), ([(tmp_path, "x")], 0), ([(tmp_path, "x")] * 1001, 5)):
        with pytest.raises(UsageError):
            measure_quality(tiny_bundle, asked, max_tokens=max_tokens)
    with pytest.raises(ImageError):
        measure_quality(tiny_bundle, [(tmp_path / "gone.png", "x")], max_tokens=5)
    with pytest.raises(UsageError, match="n_threads is 0"):
        measure_quality(tiny_bundle, [(tmp_path / "gone.png", "x")], max_tokens=5, n_threads=0)
