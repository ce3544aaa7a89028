from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from acestep_gguf.engine.engine import AceStep
from acestep_gguf.engine.question import Question
from acestep_gguf.engine.workload import workload_of
from acestep_gguf.errors import ImageError
from acestep_gguf.options import AnswerOptions
from acestep_gguf.plan.bundle_model import BundleModel
from acestep_gguf.plan.settings import PHOTO_BYTES, TEMPLATE_TOKENS
from acestep_gguf.vision.embeds_file import EmbedsFile
from acestep_gguf.vision.encode_pictures import encode_pictures
from acestep_gguf.vision.image import opening_bytes

AHEAD = {"images": 1, "n_embeds": 0, "opening_later": 0, "may_stage": True}


@pytest.fixture(scope="module")
def files(tiny_bundle: Path) -> BundleModel:
    return BundleModel(tiny_bundle)


def test_a_picture_of_the_first_question_is_known_by_its_head(files: BundleModel, picture: Path) -> None:
    _, spec = files.bundle.tower()
    workload = workload_of(files, Question("What is it?", [picture]))
    assert {name: getattr(workload, name) for name in AHEAD} == AHEAD
    assert workload.opening_ahead == opening_bytes(picture, spec)
    damaged = picture.with_name("damaged.png")
    damaged.write_bytes(picture.read_bytes()[:20])
    with pytest.raises(ImageError, match=r"damaged\.png"):
        workload_of(files, Question("What is it?", [damaged]))


def test_what_is_not_a_file_is_opened_again(files: BundleModel, picture: Path) -> None:
    _, spec = files.bundle.tower()
    large = Image.new("RGB", (800, 800))
    for source in (picture.read_bytes(), large):
        workload = workload_of(files, Question("What is it?", [source]))
        assert workload.opening_later == workload.opening_ahead == opening_bytes(source, spec)
        assert workload.may_stage
    many = workload_of(files, Question("What are they?", [picture] * 9))
    assert many.opening_later == opening_bytes(picture, spec)
    assert not many.may_stage


def test_embeds_need_no_tower_but_positions(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    (done,) = encode_pictures(tiny_bundle, [picture], tmp_path)
    question = Question("What is it?", [picture, EmbedsFile(done.path)])
    workload = workload_of(BundleModel(tiny_bundle), question)
    assert (workload.images, workload.n_embeds, workload.n_encoded) == (2, 1, 1)
    with AceStep(tiny_bundle, n_threads=1) as model:
        prepared = Question("What is it?", [model.prepare_image(EmbedsFile(done.path))])
    assert workload_of(BundleModel(tiny_bundle), prepared).n_encoded == 0


def test_text_is_counted_in_all_and_before_the_last_picture(files: BundleModel, picture: Path) -> None:
    image = {"type": "image", "image": picture}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "s" * 100},
        {"role": "user", "content": [image, {"type": "text", "text": "u" * 50}, image, image]},
        {"role": "assistant", "content": "a" * 1000},
        {"role": "user", "content": "n" * 20},
    ]
    workload = workload_of(files, Question(messages, options=AnswerOptions(max_tokens=7)))
    assert workload.n_text_before == 2 * TEMPLATE_TOKENS + 150
    assert workload.n_text_after == 2 * TEMPLATE_TOKENS + 1020
    template = len(files.bundle.prompt.chat_template) // 2
    assert workload.n_text == 4 * TEMPLATE_TOKENS + 1170 + template + 7


def test_the_longest_of_many_questions_is_planned_for_and_not_opened(
    files: BundleModel, tmp_path: Path
) -> None:
    longest = Question("u" * 50, [tmp_path / "not there.png"] * 2, AnswerOptions(max_tokens=7))
    workload = workload_of(files, None, longest)
    template = len(files.bundle.prompt.chat_template) // 2
    assert workload.n_text == TEMPLATE_TOKENS + 50 + template + 7
    assert (workload.images, workload.n_encoded, workload.may_stage) == (2, 2, False)
    assert (workload.opening_ahead, workload.opening_later) == (0, PHOTO_BYTES)


def test_what_is_not_known_is_a_photo_beside_all_that_is_loaded(bundle_copy: Path) -> None:
    workload = workload_of(BundleModel(bundle_copy), None)
    assert (workload.images, workload.n_encoded, workload.n_text) == (1, 1, None)
    assert (workload.opening_ahead, workload.opening_later) == (0, PHOTO_BYTES)
    for tower in bundle_copy.glob("vision-*"):
        tower.unlink()
    workload = workload_of(BundleModel(bundle_copy), None)
    assert (workload.images, workload.n_encoded) == (1, 0)
