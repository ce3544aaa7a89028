from collections.abc import Iterator
from pathlib import Path

import pytest

from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.decoding import speculation
from acestep_gguf.decoding.speculation import Pace
from acestep_gguf.engine.engine import AceStep
from acestep_gguf.errors import UsageError
from acestep_gguf.vision.embeds_file import EmbedsFile
from acestep_gguf.vision.encode_pictures import encode_pictures
from tests.support.tiny_checkpoints import TinyCheckpoint

QUESTION = "What is in the picture?"


@pytest.fixture(autouse=True)
def never_give_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guessing gains nothing on a model of this size, and would soon be switched off."""
    monkeypatch.setattr(Pace, "length", lambda pace, _: 4 if pace.written_s else 0)
    monkeypatch.setattr(speculation, "PATIENCE", 0.0)


@pytest.fixture(scope="module")
def drafted(tiny_bundle: Path) -> Iterator[AceStep]:
    """A decoder for which a coarser one guesses."""
    with AceStep(tiny_bundle, quant="F32", n_threads=1, n_ctx=256, draft=tiny_bundle) as opened:
        yield opened


@pytest.mark.slow
def test_answers_are_those_without_a_draft(model: AceStep, drafted: AceStep, picture: Path) -> None:
    for images in ([], [picture], [picture, picture]):
        plain = model.generate(QUESTION, images, max_tokens=24)
        guessed = drafted.generate(QUESTION, images, max_tokens=24)
        assert guessed.tokens == plain.tokens
        assert guessed.usage.drafted_tokens >= guessed.usage.accepted_tokens > 0
        assert plain.usage.drafted_tokens == 0
    assert len(plain.tokens) == 24


def test_a_drawn_answer_is_the_same(model: AceStep, drafted: AceStep, picture: Path) -> None:
    plain, guessed = (
        one.generate(QUESTION, [picture], max_tokens=24, temperature=1.5, seed=5) for one in (model, drafted)
    )
    assert guessed.tokens == plain.tokens
    assert guessed.usage.drafted_tokens > 0


@pytest.mark.slow
def test_it_is_silent_where_its_context_ends(tiny_bundle: Path) -> None:
    with AceStep(tiny_bundle, quant="F32", n_threads=1, n_ctx=64, draft=tiny_bundle) as model:
        answer = model.generate("hello", max_tokens=100)
        assert answer.usage.prompt_tokens + answer.usage.completion_tokens >= 64
        assert answer.finish_reason == "length"


def test_lookup_gives_the_same_answer(tiny_bundle: Path, model: AceStep, picture: Path) -> None:
    question = "one two three one two three one two three"
    with AceStep(tiny_bundle, quant="F32", n_threads=1, n_ctx=256, spec_type="ngram-simple") as guessing:
        plain, guessed = (one.generate(question, [picture], max_tokens=48) for one in (model, guessing))
    assert guessed.tokens == plain.tokens


@pytest.mark.parametrize(
    ("checkpoint", "problem"),
    [
        (TinyCheckpoint(has_tower=False), "has no vision tower"),
        (TinyCheckpoint(decoder="llama"), "has another vocabulary"),
    ],
)
def test_a_draft_that_cannot_guess(
    tiny_bundle: Path, tmp_path: Path, checkpoint: TinyCheckpoint, problem: str
) -> None:
    draft = tmp_path / "draft"
    convert_checkpoint(checkpoint.write(tmp_path / "checkpoint"), draft, ("Q8_0",))
    with pytest.raises(UsageError, match=f"{problem}.*another draft"):
        AceStep(tiny_bundle, n_threads=1, draft=draft)


def test_a_vocabulary_that_is_only_longer(tiny_bundle: Path, tmp_path: Path) -> None:
    draft = tmp_path / "draft"
    checkpoint = TinyCheckpoint(n_padding_rows=30, hidden_size=128, n_layers=1)
    convert_checkpoint(checkpoint.write(tmp_path / "checkpoint"), draft, ("Q8_0",))
    with AceStep(tiny_bundle, n_threads=1, n_ctx=128, draft=draft) as model:
        assert model.generate("hello", max_tokens=16).usage.drafted_tokens > 0


@pytest.fixture(scope="module")
def far_sighted(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AceStep]:
    """A decoder for which one guesses that sees larger pictures, as more tokens, through another tower."""
    folder = tmp_path_factory.mktemp("draft")
    checkpoint = TinyCheckpoint(image_size=42, seed=3).write(folder / "checkpoint")
    convert_checkpoint(checkpoint, folder / "bundle", ("F32",))
    with AceStep(tiny_bundle, quant="F32", n_threads=1, n_ctx=256, draft=folder / "bundle") as opened:
        yield opened


@pytest.mark.slow
def test_a_prepared_picture_is_opened_again_for_another_tower(
    model: AceStep, far_sighted: AceStep, picture: Path
) -> None:
    plain = model.generate(QUESTION, [picture], max_tokens=24)
    for image in (picture, far_sighted.prepare_image(picture)):
        guessed = far_sighted.generate(QUESTION, [image], max_tokens=24)
        assert guessed.tokens == plain.tokens
        assert guessed.usage.drafted_tokens > 0


def test_it_reads_as_few_tokens_of_a_picture(tiny_bundle: Path, tmp_path: Path, picture: Path) -> None:
    checkpoint = TinyCheckpoint(image_size=42, seed=3).write(tmp_path / "checkpoint")
    convert_checkpoint(checkpoint, tmp_path / "bundle", ("F32",))
    with AceStep(
        tiny_bundle, quant="F32", n_threads=1, n_ctx=128, draft=tmp_path / "bundle", image_tokens=1
    ) as model:
        # All of its tokens, nine a picture, would be more than its context holds.
        usage = model.generate("hello", [picture] * 14, max_tokens=12).usage
    assert usage.image_tokens == 14
    assert usage.drafted_tokens > 0


@pytest.mark.slow
def test_embeds_of_another_tower_cost_guesses_and_no_answer(
    model: AceStep, far_sighted: AceStep, tiny_bundle: Path, picture: Path, tmp_path: Path
) -> None:
    (done,) = encode_pictures(tiny_bundle, [picture], tmp_path, n_threads=1)
    embeds = EmbedsFile(done.path)
    plain = model.generate(QUESTION, [embeds], max_tokens=24)
    for image in (embeds, far_sighted.prepare_image(embeds)):
        with pytest.warns(UserWarning, match="guesses nothing in this answer.*another model's vision tower"):
            guessed = far_sighted.generate(QUESTION, [image], max_tokens=24)
        assert guessed.tokens == plain.tokens
    assert far_sighted.generate(QUESTION, [picture], max_tokens=24).usage.drafted_tokens > 0
