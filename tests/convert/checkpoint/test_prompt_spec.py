import json
from pathlib import Path
from typing import Any, Literal

import pytest

from acestep_gguf.bundle.schema import PromptSpec
from acestep_gguf.convert.checkpoint.chat_templates import VICUNA
from acestep_gguf.convert.checkpoint.config import parse_config
from acestep_gguf.convert.checkpoint.folder import CheckpointFolder
from acestep_gguf.convert.checkpoint.prompt_spec import read_prompt_spec, read_stop_ids
from acestep_gguf.convert.checkpoint.tokenizer import read_tokenizer, read_vocabulary
from acestep_gguf.errors import CheckpointError
from acestep_gguf.prompt.chat_template import ChatTemplate
from tests.support.tiny_checkpoints import TinyCheckpoint
from tests.support.tiny_families import QWEN2_TEMPLATE
from tests.support.tiny_tokenizer import token_id


def read(folder: Path) -> PromptSpec:
    checkpoint = CheckpointFolder(folder)
    config = parse_config(checkpoint.config, folder / "config.json")
    vocabulary = read_vocabulary(
        read_tokenizer(checkpoint), config.text_config.vocab_size, config.image_token_index
    )
    stop_ids = read_stop_ids(checkpoint, config, vocabulary)
    return read_prompt_spec(checkpoint, config, vocabulary.with_control_tokens(stop_ids), stop_ids)


def changed(folder: Path, name: str, **changes: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))
    return folder


def test_both_versions_say_the_same_but_for_unk(tmp_path: Path) -> None:
    v4 = read(TinyCheckpoint().write(tmp_path / "v4"))
    v5 = read(TinyCheckpoint(layout="v5").write(tmp_path / "v5"))
    assert v4.template_tokens == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    assert v5.template_tokens == v4.template_tokens | {"unk_token": "<|endoftext|>"}
    assert (v4.image_token, v4.stop_tokens, v4.control_tokens) == (
        v5.image_token,
        v5.stop_tokens,
        v5.control_tokens,
    )
    assert v4.image_token == "<image>"
    assert v4.stop_tokens == ("<|im_end|>", "<|endoftext|>")
    assert v4.control_tokens["<|im_start|>"] == token_id("<|im_start|>")
    assert "<tool_call>" not in v4.control_tokens


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.json", "chat_template.jinja"])
def test_template_is_found_in_each_place(
    tmp_path: Path, place: Literal["tokenizer_config.json", "chat_template.json", "chat_template.jinja"]
) -> None:
    assert read(TinyCheckpoint(chat_template_in=place).write(tmp_path / "c")).chat_template == QWEN2_TEMPLATE


def test_llava_1_5s_first_folders_have_no_template(tmp_path: Path) -> None:
    folder = TinyCheckpoint(decoder="llama").write(tmp_path / "c")
    (folder / "chat_template.json").unlink()
    with pytest.raises(CheckpointError, match="no chat template"):
        read(folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["_name_or_path"] = "lmsys/vicuna-7b-v1.5"
    assert read(changed(folder, "config.json", **config)).chat_template == VICUNA


def test_vicunas_format(tmp_path: Path) -> None:
    spec = read(TinyCheckpoint(decoder="llama").write(tmp_path / "c"))
    assert (spec.add_bos, spec.space_prefix, spec.stop_tokens) == (True, "first", ("</s>",))
    picture, answer = {"type": "image"}, {"type": "text", "text": "A cat."}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "What is this?"}, picture]},
        {"role": "assistant", "content": [answer]},
        {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
    ]
    assert ChatTemplate(spec.chat_template, spec.template_tokens).render(messages) == (
        "USER: <image>\nWhat is this? ASSISTANT: A cat. USER: Sure? ASSISTANT:"
    )


@pytest.mark.parametrize(("said", "expected"), [(True, True), (False, False), (None, True)])
def test_add_bos_token(tmp_path: Path, said: bool | None, expected: bool) -> None:
    folder = TinyCheckpoint(decoder="llama").write(tmp_path / "c")
    assert read(changed(folder, "tokenizer_config.json", add_bos_token=said)).add_bos == expected


def test_the_processors_template_comes_before_the_tokenizers(tiny: Path) -> None:
    changed(tiny, "tokenizer_config.json", chat_template="tokenizer's")
    assert read(tiny).chat_template == QWEN2_TEMPLATE
    changed(tiny, "processor_config.json", chat_template="processor's")
    (tiny / "chat_template.json").unlink()
    assert read(tiny).chat_template == "processor's"
    (tiny / "chat_template.jinja").write_text("jinja's")
    assert read(tiny).chat_template == "jinja's"


def test_of_named_templates_the_default_one_counts(tmp_path: Path) -> None:
    folder = TinyCheckpoint(chat_template_in="tokenizer_config.json").write(tmp_path / "c")
    named = [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}]
    assert read(changed(folder, "tokenizer_config.json", chat_template=named)).chat_template == "yes"


@pytest.mark.parametrize("template", ["", None, 5, [], [{"name": "rag", "template": "no"}]])
def test_checkpoint_without_a_template_is_an_error(tmp_path: Path, template: Any) -> None:
    folder = TinyCheckpoint(chat_template_in="tokenizer_config.json").write(tmp_path / "c")
    with pytest.raises(CheckpointError, match="no chat template"):
        read(changed(folder, "tokenizer_config.json", chat_template=template))


def test_stop_tokens_without_a_generation_config(tiny: Path) -> None:
    (tiny / "generation_config.json").unlink()
    assert read(tiny).stop_tokens == ("<|im_end|>",)


def test_one_eos_token_and_the_tokenizers(tiny: Path) -> None:
    changed(tiny, "generation_config.json", eos_token_id=token_id("<|endoftext|>"))
    assert read(tiny).stop_tokens == ("<|endoftext|>", "<|im_end|>")


def test_stop_token_that_is_not_special_becomes_a_control_token(tiny: Path) -> None:
    changed(tiny, "generation_config.json", eos_token_id=token_id("<tool_call>"))
    assert read(tiny).control_tokens["<tool_call>"] == token_id("<tool_call>")


def test_tokens_written_as_added_tokens(tiny: Path) -> None:
    changed(tiny, "tokenizer_config.json", eos_token={"content": "<|endoftext|>", "lstrip": False})
    changed(tiny, "special_tokens_map.json", eos_token="<|im_end|>", bos_token="<|im_start|>")
    spec = read(tiny)
    assert spec.template_tokens["eos_token"] == "<|endoftext|>"
    assert "bos_token" not in spec.template_tokens  # null in tokenizer_config.json


def test_extra_special_tokens_reach_the_template(tiny: Path) -> None:
    changed(tiny, "tokenizer_config.json", extra_special_tokens={"image_token": "<image>", "x_token": "<x>"})
    tokens = read(tiny).template_tokens
    assert (tokens["image_token"], tokens["x_token"]) == ("<image>", "<x>")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("tokenizer_config.json", {"eos_token": "<none>"}, "'<none>' is not in tokenizer.json"),
        ("generation_config.json", {"eos_token_id": [10**6]}, "1000000 is not in the vocabulary"),
        ("generation_config.json", {"eos_token_id": -1}, "-1 is not in the vocabulary"),
        ("processor_config.json", {"image_token": "<picture>"}, "image token is '<picture>'"),
    ],
)
def test_tokens_that_contradict_each_other_are_an_error(
    tiny: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(changed(tiny, name, **changes))


def test_no_eos_token_at_all_is_an_error(tiny: Path) -> None:
    (tiny / "generation_config.json").unlink()
    changed(tiny, "tokenizer_config.json", eos_token=None)
    text = json.loads((tiny / "config.json").read_text())["text_config"]
    changed(tiny, "config.json", text_config=text | {"eos_token_id": None})
    with pytest.raises(CheckpointError, match="names no eos token"):
        read(tiny)
