"""What is computed once is not computed again, and changes no answer."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from acestep_gguf import AceStep, Answer
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.cpus import cpu_flags
from acestep_gguf.errors import DecodeError, UsageError
from acestep_gguf.llama.params import AMX
from acestep_gguf.storage.disk_cache import DiskCache
from tests.support.fidelity import DEMO


def ask(bundle: Path, cache: Path | bool, question: str, images: list[Any], **options: Any) -> Answer:
    """One answer of a new engine, which stands for a new process."""
    with AceStep(bundle, quant="F32", n_ctx=256, n_threads=1, cache=cache, **options) as model:
        return model.generate(question, images, max_tokens=12)


def test_the_same_and_other_questions_about_a_picture(
    tiny_bundle: Path, picture: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    first = ask(tiny_bundle, folder, "What is this?", [picture])
    again = ask(tiny_bundle, folder, "What is this?", [picture])
    other = ask(tiny_bundle, folder, "Which colour is it, and why?", [picture])
    assert first.usage.cached_tokens == 0
    assert again.usage.cached_tokens == other.usage.cached_tokens >= 4
    for answer in (again, other):
        assert answer.timings.prefill_tokens == answer.usage.prompt_tokens - answer.usage.cached_tokens
    assert again.text == first.text == ask(tiny_bundle, False, "What is this?", [picture]).text
    assert other.text == ask(tiny_bundle, False, "Which colour is it, and why?", [picture]).text


def test_only_the_state_of_the_same_prompt_is_taken(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    blue = Image.new("RGB", (28, 28), (0, 0, 255))
    ask(tiny_bundle, tmp_path, "What is this?", [picture])
    assert ask(tiny_bundle, tmp_path, "What is this?", [blue]).usage.cached_tokens == 0
    assert ask(tiny_bundle, tmp_path, "What is this?", [blue, picture]).usage.cached_tokens > 4
    both = ask(tiny_bundle, tmp_path, "Which is blue?", [blue, picture])
    assert both.usage.cached_tokens > 8
    assert both.text == ask(tiny_bundle, False, "Which is blue?", [blue, picture]).text


@pytest.mark.parametrize(
    "settings",
    [
        {"type_k": "f32"},
        {"flash_attn": "off"},
        {"n_ubatch": 8},
        {"n_batch": 16},
        pytest.param(
            {"use_extra_bufts": True},
            marks=pytest.mark.skipif(AMX in cpu_flags(), reason="repacking crashes with AMX"),
        ),
        {"image_tokens": 2},
    ],
)
def test_other_settings_have_other_states(
    tiny_bundle: Path, picture: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    known = {"flash_attn": "on", "use_extra_bufts": False, **settings}
    ask(tiny_bundle, tmp_path, "What is this?", [picture], flash_attn="on", use_extra_bufts=False)
    answer = ask(tiny_bundle, tmp_path, "What is this?", [picture], **known)
    assert answer.usage.cached_tokens == 0
    assert ask(tiny_bundle, tmp_path, "What is this?", [picture], **known).usage.cached_tokens > 0
    assert answer.text == ask(tiny_bundle, False, "What is this?", [picture], **known).text


def test_another_context_has_the_same_states(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    answers = []
    for n_ctx in (256, 512, 100):
        with AceStep(tiny_bundle, n_ctx=n_ctx, n_threads=1, cache=tmp_path) as model:
            answers.append(model.generate("What is this?", [picture], max_tokens=12))
    assert len({answer.text for answer in answers}) == 1
    assert all(answer.usage.cached_tokens > 0 for answer in answers[1:])


def test_a_file_that_was_replaced_has_other_states(bundle_copy: Path, picture: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    bundle = Bundle.read(bundle_copy)
    ask(bundle_copy, cache, "What is this?", [picture])
    os.utime(bundle_copy / bundle.decoder("F32").file)
    assert ask(bundle_copy, cache, "What is this?", [picture]).usage.cached_tokens == 0
    assert ask(bundle_copy, cache, "What is this?", [picture]).usage.cached_tokens > 0
    os.utime(bundle_copy / bundle.vision_file().data.file)
    assert ask(bundle_copy, cache, "What is this?", [picture]).usage.cached_tokens == 0
    assert ask(bundle_copy, cache, "What is this?", [picture]).usage.cached_tokens > 0
    text = (bundle_copy / "bundle.json").read_text()
    (bundle_copy / "bundle.json").write_text(text + "\n")
    assert ask(bundle_copy, cache, "What is this?", [picture]).usage.cached_tokens == 0


@pytest.mark.slow
def test_a_known_picture_needs_no_tower(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    code = (
        "import json, sys\n"
        "from acestep_gguf import AceStep\n"
        "options = json.loads(sys.argv[4])\n"
        "with AceStep(sys.argv[1], n_threads=1, n_ctx=256, cache=sys.argv[2], **options) as model:\n"
        "    answer = model.generate('What is this?', [sys.argv[3]], max_tokens=12)\n"
        "print(json.dumps([answer.text, answer.usage.cached_tokens, 'onnxruntime' in sys.modules]))\n"
    )

    def run(**options: Any) -> Any:
        paths = map(str, (tiny_bundle, tmp_path, picture))
        command = [sys.executable, "-c", code, *paths, json.dumps(options)]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)

    text, n_cached, loaded = run()
    assert (n_cached, loaded) == (0, True)
    text_again, n_cached, loaded = run()
    assert (text_again, loaded) == (text, False)
    assert n_cached > 0
    # The decoder is another one, but the tower is not.
    _, n_cached, loaded = run(quant="Q8_0")
    assert (n_cached, loaded) == (0, False)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_entries_change_no_answer(
    tiny_bundle: Path, picture: Path, tmp_path: Path, data: st.DataObject
) -> None:
    expected = ask(tiny_bundle, tmp_path, "What is this?", [picture])
    for path in sorted(tmp_path.glob("*-*")):
        whole = path.read_bytes()
        at = data.draw(st.integers(0, len(whole) - 1), label=path.name[:6])
        cut = data.draw(st.booleans())
        path.write_bytes(whole[:at] if cut else whole[:at] + bytes([whole[at] ^ 64]) + whole[at + 1 :])
    answer = ask(tiny_bundle, tmp_path, "What is this?", [picture])
    assert (answer.text, answer.usage.cached_tokens) == (expected.text, 0)
    assert ask(tiny_bundle, tmp_path, "What is this?", [picture]).usage.cached_tokens > 0


def test_sound_entries_with_wrong_contents_do_no_harm(
    tiny_bundle: Path, picture: Path, tmp_path: Path
) -> None:
    """Whoever may write to the folder can make an entry whose hash is right."""
    expected = ask(tiny_bundle, tmp_path, "What is this?", [picture])
    entries = sorted(tmp_path.glob("*-*"))
    assert [path.name.partition("-")[0] for path in entries] == ["embeds", "state"]
    nan = np.full(1000, np.nan, np.float32)
    for contents in (b"", b"x", b"\0" * 5121, nan.tobytes(), nan[:1].tobytes() * 1040):
        cache = DiskCache(tmp_path)
        for path in entries:
            cache.put(path.name, np.frombuffer(contents, np.uint8))
        cache.close()
        assert ask(tiny_bundle, tmp_path, "What is this?", [picture]).text == expected.text


def test_a_chat_computes_nothing_twice(tiny_bundle: Path, picture: Path) -> None:
    control = set(Bundle.read(tiny_bundle).prompt.control_tokens.values())
    messages: list[dict[str, Any]] = []
    n_known, n_whole = 0, 0
    with AceStep(tiny_bundle, quant="F32", n_ctx=512, n_threads=1) as model:
        for question in ("What is this?", "And why?", "Since when?", "Is it?", "How many?"):
            parts = [{"type": "image", "image": picture}] if not messages else []
            messages.append({"role": "user", "content": [*parts, {"type": "text", "text": question}]})
            answer = model.generate(messages, max_tokens=4, exact=False)
            assert answer.usage.cached_tokens == n_known
            assert answer.timings.prefill_tokens == answer.usage.prompt_tokens - n_known
            messages.append({"role": "assistant", "content": answer})
            n_known = answer.usage.prompt_tokens
            if control.isdisjoint(answer.tokens):  # otherwise it is put to the model as other tokens
                # The last token of an answer is chosen, but computed only with the next prompt.
                n_known += len(answer.tokens) - (answer.finish_reason == "length")
                n_whole += 1
        assert n_whole > 2
        messages[2] = {"role": "user", "content": "Something else"}
        changed = model.generate(messages[:3], max_tokens=4, exact=False)
        assert 4 < changed.usage.cached_tokens < n_known


def test_what_was_asked_before_changes_no_answer(tiny_bundle: Path, picture: Path) -> None:
    def logits(model: AceStep, question: str) -> npt.NDArray[np.float32]:
        model.generate(question, [picture], max_tokens=1)
        return model._decoder.context.logits()  # those that the first token was chosen from

    with AceStep(tiny_bundle, quant="F32", n_ctx=256, n_threads=1) as model:
        plain = logits(model, "What is this?")
        for question in ("What is it?", "What is this? And that?", "What"):
            model.generate(question, [picture], max_tokens=20, exact=False)
            assert np.array_equal(logits(model, "What is this?"), plain)


@pytest.mark.parametrize("after", [0, 3])
def test_cancelling(tiny_bundle: Path, picture: Path, after: int) -> None:
    with AceStep(tiny_bundle, quant="F32", n_ctx=512, n_threads=1) as model:
        expected = model.generate("What is this?", [picture], max_tokens=12)
        model.cancel()  # no answer is being written
        assert model.generate("What is this?", [picture], max_tokens=12).text == expected.text
        texts = []
        for chunk in model.stream("What is this?", [picture], max_tokens=300):
            texts.append(chunk.text)
            if len(texts) == after + 1:
                model.cancel()
        assert chunk.answer is not None
        assert chunk.answer.finish_reason == "cancelled"
        assert chunk.answer.text == "".join(texts)
        assert after < chunk.answer.usage.completion_tokens < 300
        # The first token costs no call, and the call that was cancelled gave none.
        assert chunk.answer.timings.decode_tokens == chunk.answer.usage.completion_tokens - 1
        assert (chunk.answer.timings.decode_tokens_per_s is None) == (
            chunk.answer.usage.completion_tokens == 1
        )
        assert model.generate("What is this?", [picture], max_tokens=12).text == expected.text


def test_another_thread_cancels_while_the_prompt_is_read(tiny_bundle: Path) -> None:
    question = "word " * 100
    with AceStep(tiny_bundle, quant="F32", n_ctx=512, n_threads=1, n_batch=1) as model:
        ended = threading.Event()

        def cancel_as_soon_as_there_is_an_answer() -> None:
            while not ended.wait(0.001):
                model.cancel()

        canceller = threading.Thread(target=cancel_as_soon_as_there_is_an_answer, daemon=True)
        canceller.start()
        answer = model.generate(question, max_tokens=5)
        ended.set()
        canceller.join()
        assert (answer.finish_reason, answer.text, answer.tokens) == ("cancelled", "", ())
        assert answer.timings.prefill_tokens < answer.usage.prompt_tokens
        assert (answer.timings.decode_tokens, answer.timings.decode_tokens_per_s) == (0, None)
        assert model.generate(question, max_tokens=5).finish_reason != "cancelled"


def test_another_thread_cancels_while_pictures_are_encoded(tiny_bundle: Path) -> None:
    with AceStep(tiny_bundle, quant="F32", n_ctx=512, n_threads=1) as model:

        def ask_about_many() -> Iterator[str]:
            for gray in range(256):
                picture = Image.new("L", (28, 28), gray)
                yield model.generate("?", [picture], max_tokens=1).finish_reason

        def again_and_again(act: Callable[[], None]) -> None:
            while not done.wait(0.0001):
                act()

        model.generate("?", [Image.new("L", (28, 28))], max_tokens=1)
        for act in (model.cancel, model._encoder.stop):
            done = threading.Event()
            thread = threading.Thread(target=again_and_again, args=(act,))
            thread.start()
            try:
                if act == model.cancel:
                    assert "cancelled" in ask_about_many()
                else:  # the tower failed, and nobody asked for it
                    with pytest.raises(DecodeError, match="onnxruntime failed"):
                        set(ask_about_many())
            finally:
                done.set()
                thread.join()
        assert set(islice(ask_about_many(), 3)) == {"length"}


def test_cache_is_a_folder_or_yes_or_no(
    tiny_bundle: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ask(tiny_bundle, False, "What is this?", [picture])
    assert not list(tmp_path.rglob("state-*"))
    ask(tiny_bundle, True, "What is this?", [picture])
    assert len(list((tmp_path / "acestep-gguf" / "pictures").glob("state-*"))) == 1
    with pytest.raises(UsageError, match="cache is 5"):
        AceStep(tiny_bundle, cache=5)


def test_a_state_beyond_the_limit_is_not_kept(
    tiny_bundle: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACESTEP_GGUF_CACHE_LIMIT", "10K")
    ask(tiny_bundle, tmp_path, "What is this?", [picture])
    assert [path.name[:6] for path in tmp_path.glob("*-*")] == ["embeds"]


@pytest.mark.slow
def test_answers_of_the_demo_with_the_cache_and_without(tmp_path: Path) -> None:
    convert_checkpoint(DEMO, tmp_path / "bundle", ["Q4_K_M"])
    pictures = sorted((DEMO / "pictures").glob("*.*"))[:4]
    questions = (
        "How many shapes are there?",
        "What colour is the circle?",
        "Describe this image in detail",
        "What does it say?",
        "Which shape is at the top?",
    )

    def answers(cache: Path | bool) -> list[tuple[str, bytes, int]]:
        """Texts, logits of the first token, and how many tokens were known."""
        found = []
        with AceStep(tmp_path / "bundle", cache=cache) as model:
            for picture, question in product(pictures, questions):
                model._decoder.reset()  # as in a new process
                answer = model.generate(question, [picture], max_tokens=1)
                logits = model._decoder.context.logits().tobytes()
                text = model.generate(question, [picture], max_tokens=24).text
                found.append((text, logits, answer.usage.cached_tokens))
        return found

    without, filling, full = answers(False), answers(tmp_path / "cache"), answers(tmp_path / "cache")
    assert all(n_cached == 0 for _, _, n_cached in without)
    assert sum(n_cached == 0 for _, _, n_cached in filling) == len(pictures)
    assert all(n_cached > 0 for _, _, n_cached in full)
    plain = [answer[:2] for answer in without]
    assert [answer[:2] for answer in filling] == plain
    assert [answer[:2] for answer in full] == plain
