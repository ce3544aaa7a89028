import json
from pathlib import Path

import pytest

from acestep_gguf.batch.settings import settings_of
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.errors import BundleError
from acestep_gguf.options import AnswerOptions, EngineOptions


def settings(
    bundle: Path,
    engine: EngineOptions | None = None,
    answer: AnswerOptions | None = None,
    prompt: str = "What?",
    system_prompt: str | None = None,
) -> dict[str, object]:
    return settings_of(
        Bundle.read(bundle),
        engine or EngineOptions(),
        answer or AnswerOptions(),
        prompts=[prompt],
        system_prompt=system_prompt,
    )


def test_they_are_the_same_in_another_process(tiny_bundle: Path) -> None:
    found = settings(tiny_bundle, answer=AnswerOptions(stop=["."]))
    assert json.loads(json.dumps(found)) == found


def test_what_changes_answers_changes_them(tiny_bundle: Path) -> None:
    all_of_them = [
        settings(tiny_bundle),
        settings(tiny_bundle, EngineOptions(quant="F32")),
        settings(tiny_bundle, EngineOptions(vision="float32")),
        settings(tiny_bundle, EngineOptions(image_tokens=2)),
        settings(tiny_bundle, EngineOptions(type_k="q8_0")),
        settings(tiny_bundle, answer=AnswerOptions(max_tokens=5)),
        settings(tiny_bundle, answer=AnswerOptions(temperature=0.5)),
        settings(tiny_bundle, answer=AnswerOptions(json_schema={"type": "integer"})),
        settings(tiny_bundle, answer=AnswerOptions(grammar='root ::= "yes"')),
        settings(tiny_bundle, prompt="Why?"),
        settings(tiny_bundle, system_prompt="Be brief."),
    ]
    assert len({json.dumps(found) for found in all_of_them}) == len(all_of_them)


def test_what_is_in_a_file_counts_and_not_its_name(tiny_bundle: Path, tmp_path: Path) -> None:
    grammar, schema = tmp_path / "yes.gbnf", tmp_path / "whole.json"
    grammar.write_text('root ::= "yes"')
    schema.write_text('{"type": "integer"}')
    for by_name, by_text in (
        (AnswerOptions(grammar=grammar), AnswerOptions(grammar=grammar.read_text())),
        (AnswerOptions(json_schema=schema), AnswerOptions(json_schema=schema.read_text())),
    ):
        assert settings(tiny_bundle, answer=by_name) == settings(tiny_bundle, answer=by_text)


def test_what_changes_speed_only_does_not(tiny_bundle: Path) -> None:
    default = settings(tiny_bundle)
    quicker = EngineOptions(
        n_threads=1, n_batch=64, use_mmap=False, cache=True, quant=Bundle.read(tiny_bundle).decoders.default
    )
    assert settings(tiny_bundle, quicker) == default


def test_a_decoder_that_is_not_there(tiny_bundle: Path) -> None:
    with pytest.raises(BundleError):
        settings(tiny_bundle, EngineOptions(quant="Q5_K_M"))
