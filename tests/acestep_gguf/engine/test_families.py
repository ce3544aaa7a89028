"""A bundle of each family answers, and llama.cpp's own view of its vocabulary is the checkpoint's."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from acestep_gguf.bundle.verify import verify_bundle
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.engine.engine import AceStep
from acestep_gguf.options import AnswerOptions
from acestep_gguf.prompt.messages import user_message
from tests.support.schemas import Schema, follows
from tests.support.tiny_checkpoints import TinyCheckpoint

FAMILIES = {
    "LLaVA-1.5": TinyCheckpoint(decoder="llama", activation="quick_gelu", n_kv_heads=4),
    "llava-interleave": TinyCheckpoint(
        tower="siglip", activation="gelu_pytorch_tanh", feature_layer=-1, strategy="full", image_size=48
    ),
}
PICTURE = Image.linear_gradient("L").resize((60, 40)).convert("RGB")


@pytest.fixture(scope="module", params=FAMILIES)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family")
    convert_checkpoint(FAMILIES[request.param].write(folder / "c"), folder / "b", ["Q4_K_M", "F32"])
    return folder / "b"


@pytest.fixture(scope="module")
def model(bundle: Path) -> Iterator[AceStep]:
    with AceStep(bundle, n_threads=1) as opened:
        yield opened


def test_the_bundle_is_sound(bundle: Path) -> None:
    assert verify_bundle(bundle).problems == ()


def test_a_question_about_two_pictures(model: AceStep) -> None:
    answer = model.generate("Same?", [PICTURE, PICTURE.rotate(90)], max_tokens=6)
    assert answer.usage.image_tokens == 2 * model.bundle.tower()[1].n_image_tokens
    assert len(answer.tokens) == 6
    again = model.generate("Same?", [PICTURE, PICTURE.rotate(90)], max_tokens=6)
    assert again.tokens == answer.tokens


def test_answers_of_sentencepiece_begin_without_its_space(model: AceStep) -> None:
    answer = model.generate("Who?", max_tokens=6)
    spelled = b"".join(map(model._decoder.context.model.token_bytes, answer.tokens)).decode(
        "utf-8", "replace"
    )
    has_space = model.bundle.prompt.space_prefix != "never"
    assert answer.text == (spelled.removeprefix(" ") if has_space else spelled)


@pytest.mark.parametrize("seed", range(8))
def test_an_answer_as_data(model: AceStep, seed: int) -> None:
    schema: Schema = {
        "type": "object",
        "properties": {"é\n": {"type": "string", "minLength": 1, "maxLength": 4}, "n": {"type": "number"}},
        "required": ["é\n", "n"],
    }
    drawn = AnswerOptions(temperature=3.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed, json_schema=schema)
    answer = model.generate("Who?", [PICTURE], drawn)
    assert answer.finish_reason == "stop"
    assert follows(answer.text, schema)


def test_a_grammar_says_what_an_answer_begins_with(model: AceStep) -> None:
    assert model.generate("Who?", grammar='root ::= " a  b "').text == " a  b "


@pytest.mark.parametrize("token", ["<s>", "</s>", "<unk>", "<image>", "<pad>", "<|im_end|>"])
def test_control_tokens_typed_by_a_user_stay_text(model: AceStep, token: str) -> None:
    def n_controls(text: str) -> int:
        prompt = model._prompts.build([user_message(text, [])])
        return sum(token in control_ids for token in prompt.text_tokens)

    control_ids = set(model.bundle.prompt.control_tokens.values())
    assert n_controls(f"a {token} b {token}") == n_controls("a b")
