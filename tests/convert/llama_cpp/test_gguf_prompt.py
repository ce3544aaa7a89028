"""Templates and tokens of decoders that others made."""

from pathlib import Path

import pytest

from acestep_gguf.bundle.gguf_header import read_gguf_header
from acestep_gguf.bundle.schema import Bundle, PromptSpec
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.convert.llama_cpp.gguf_prompt import (
    CHAT_TEMPLATES,
    DEFAULT_IMAGE_TOKEN,
    choose_template,
    read_gguf_prompt,
)
from acestep_gguf.errors import BundleError, CheckpointError, PromptError, UnsupportedModelError, UsageError
from acestep_gguf.llama.binding import Model
from acestep_gguf.prompt.builder import ImageSpan, PromptBuilder, TokenSpan
from acestep_gguf.prompt.messages import user_message
from acestep_gguf.quantize.gguf_layout import boolean, i32s, string, strings, u32
from tests.support.crossing_tokens import with_crossing_tokens
from tests.support.gguf_files import rewrite
from tests.support.tiny_checkpoints import TinyCheckpoint
from tests.support.tiny_tokenizer import token_id

STRINGS_ONLY = "{% for m in messages %}{{ '<|im_start|>' + m['content'] + '<|im_end|>' }}{% endfor %}"


@pytest.fixture(scope="module")
def llama_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    checkpoint = TinyCheckpoint(decoder="llama").write(folder / "checkpoint")
    bundle = convert_checkpoint(checkpoint, folder / "bundle", ["F32"], vision=["float32"])
    return folder / "bundle" / bundle.decoder().file


def read(
    decoder: Path, template: str | None = None, image_token: str | None = DEFAULT_IMAGE_TOKEN
) -> PromptSpec:
    return read_gguf_prompt(read_gguf_header(decoder), template, image_token)


def test_what_conversion_wrote_is_found_again(decoder_file: Path, tiny_bundle: Path) -> None:
    found, prompt = read(decoder_file), Bundle.read(tiny_bundle).prompt
    assert found.chat_template == prompt.chat_template
    assert found.control_tokens == prompt.control_tokens
    assert found.user_defined_tokens == prompt.user_defined_tokens
    assert set(found.stop_tokens) == set(prompt.stop_tokens)
    assert (found.normalizer, found.add_bos, found.space_prefix) == ("NFC", False, "never")


def test_tekkens_tokenizer_is_read(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint(decoder="tekken", has_tower=False).write(tmp_path / "c")
    bundle = convert_checkpoint(checkpoint, tmp_path / "b", ["F32"])
    decoder = tmp_path / "b" / bundle.decoder().file
    assert read_gguf_header(decoder).metadata["tokenizer.ggml.pre"] == "tekken"
    found = read(decoder, image_token=None)
    assert found.control_tokens == bundle.prompt.control_tokens
    assert (found.normalizer, found.add_bos, found.space_prefix) == (None, False, "never")
    keys = {"tokenizer.ggml.add_bos_token": None}
    assert read(rewrite(decoder, tmp_path / "unsaid.gguf", metadata=keys), image_token=None).add_bos


def test_sentencepiece_gets_a_first_token_and_spaces_as_in_llama_cpp(
    llama_decoder: Path, tmp_path: Path
) -> None:
    keys = dict.fromkeys(("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_space_prefix"))
    found = read(rewrite(llama_decoder, tmp_path / "unsaid.gguf", metadata=keys))
    assert (found.normalizer, found.add_bos, found.space_prefix) == (None, True, "prepend")
    said = {key: boolean(False) for key in keys}
    found = read(rewrite(llama_decoder, tmp_path / "said.gguf", metadata=said))
    assert (found.add_bos, found.space_prefix) == (False, "never")


def test_a_place_for_a_picture_never_reaches_the_tokenizer(decoder_file: Path) -> None:
    spec = read(decoder_file, STRINGS_ONLY, "[IMG]")
    assert "[IMG]" not in spec.control_tokens
    seen: list[str] = []
    with Model(decoder_file) as model:

        def tokenize(text: str) -> list[int]:
            seen.append(text)
            return model.tokenize(text)

        builder = PromptBuilder(spec, tokenize, model.token_bytes)
        prompt = builder.build([user_message("A [IMG] is no picture.", [b"one", b"two"])])
    kinds = [type(span) for span in prompt.spans]
    assert kinds == [TokenSpan, ImageSpan, TokenSpan, ImageSpan, TokenSpan]
    # What a user wrote is text, whatever it looks like.
    assert seen == ["\n", "\nA [IMG] is no picture."]


def test_a_model_that_cannot_see_needs_no_place_for_a_picture(decoder_file: Path) -> None:
    spec = read(decoder_file, "{{ messages[0]['content'] + eos_token }}", None)
    assert spec.image_token is None
    builder = PromptBuilder(spec, lambda text: [1] * len(text), lambda _token: b"")
    assert builder.build([user_message("Why?", [])]).spans == (
        TokenSpan((1,) * 4 + (token_id("<|im_end|>"),)),
    )
    with pytest.raises(PromptError, match="no vision tower"):
        builder.build([user_message("What?", [b"a picture"])])
    with pytest.raises(CheckpointError, match=r"no question can be put .*: give another chat_template_file"):
        read(decoder_file, "{{ messages[0]['role'] }}", None)


def test_only_llama_3_begins_prompts_as_llama_cpp_does_unasked(decoder_file: Path, tmp_path: Path) -> None:
    bos, add_bos = "tokenizer.ggml.bos_token_id", "tokenizer.ggml.add_bos_token"
    for pre, said, expected in (
        ("llama-bpe", None, True),
        ("llama-bpe", boolean(False), False),
        ("smollm", None, False),
        ("smollm", boolean(True), True),
    ):
        metadata = {
            "tokenizer.ggml.pre": string(pre),
            bos: u32(token_id("<|endoftext|>")),
            add_bos: said,
        }
        spec = read(rewrite(decoder_file, tmp_path / "decoder.gguf", metadata=metadata))
        assert (spec.add_bos, spec.normalizer) == (expected, None)


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("llama-bpe", ["111", "1", "(t", "h", "e", ".\n"]),
        ("qwen2", ["1", "1", "1", "1", "(t", "h", "e", ".\n"]),
        ("smollm", ["1", "1", "1", "1", "(", "t", "h", "e", ".", "\n"]),
    ],
)
def test_text_is_cut_as_the_metadata_says(
    decoder_file: Path, tmp_path: Path, pre: str, expected: list[str]
) -> None:
    path = with_crossing_tokens(decoder_file, tmp_path / "decoder.gguf", pre)
    assert read(path).chat_template
    with Model(path) as model:
        found = b"|".join(map(model.token_bytes, model.tokenize("1111(the.\n")))
    assert found.decode().split("|") == expected


@pytest.mark.parametrize("name", sorted(CHAT_TEMPLATES))
def test_templates_take_pictures_turns_and_a_system_message(decoder_file: Path, name: str) -> None:
    spec = read(decoder_file, choose_template(name, None))
    builder = PromptBuilder(spec, lambda text: [1] * len(text), lambda _token: b"")
    prompt = builder.build(
        [
            {"role": "system", "content": "Be brief."},
            user_message("What is it?", [b"a picture"]),
            {"role": "assistant", "content": "A dog."},
            {"role": "user", "content": "Which?"},
        ]
    )
    assert len(prompt.images) == 1


def test_vicuna_is_llama_cpps() -> None:
    """LLM_CHAT_TEMPLATE_VICUNA of llama-chat.cpp."""
    from acestep_gguf.prompt.chat_template import ChatTemplate

    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image>\nWhat?"},
        {"role": "assistant", "content": "A dog."},
        {"role": "user", "content": "Which?"},
    ]
    rendered = ChatTemplate(CHAT_TEMPLATES["vicuna"], {"eos_token": "</s>"}).render(messages)
    assert rendered == ("Be brief.\n\nUSER: <image>\nWhat?\nASSISTANT: A dog.</s>\nUSER: Which?\nASSISTANT:")


def test_templates_by_name_and_from_files(tmp_path: Path) -> None:
    path = tmp_path / "template.jinja"
    path.write_text("{{ messages }}")
    assert choose_template(None, None) is None
    assert choose_template(None, path) == "{{ messages }}"
    with pytest.raises(UsageError, match="both given"):
        choose_template("vicuna", path)
    with pytest.raises(UsageError, match="choose from vicuna, chatml"):
        choose_template("alpaca", None)
    with pytest.raises(UsageError, match="cannot be read"):
        choose_template(None, tmp_path / "missing.jinja")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="cannot be read"):
        choose_template(None, path)
    path.write_bytes(b" " * (2**20 + 1))
    with pytest.raises(UsageError, match="too large"):
        choose_template(None, path)


@pytest.mark.parametrize(
    ("metadata", "error", "problem"),
    [
        ({"tokenizer.chat_template": None}, CheckpointError, "as chat_template one of vicuna, chatml"),
        (
            {"tokenizer.chat_template": string("{{ messages[0]['role'] }}")},
            CheckpointError,
            "as image_token, or give another chat_template_file",
        ),
        ({"tokenizer.chat_template": string("{% if %}")}, CheckpointError, "not valid"),
        (
            {"tokenizer.chat_template": string("{# " + " " * 2**20 + "#}")},
            BundleError,
            "template has more than 1 MiB",
        ),
        (
            {
                "tokenizer.ggml.tokens": strings([f"{number}{'x' * 2**19}" for number in range(17)]),
                "tokenizer.ggml.token_type": i32s([3] * 17),
                "tokenizer.ggml.eos_token_id": u32(1),
                "tokenizer.ggml.bos_token_id": None,
                "tokenizer.ggml.padding_token_id": None,
            },
            BundleError,
            "added tokens take more than 8 MiB",
        ),
        ({"tokenizer.ggml.pre": None}, UnsupportedModelError, "does not say how it cuts text"),
        ({"tokenizer.ggml.pre": string("gpt-4o")}, UnsupportedModelError, "as 'gpt-4o' does"),
        ({"tokenizer.ggml.pre": string("tekken")}, UnsupportedModelError, "not those of a Tekken vocabulary"),
        ({"tokenizer.ggml.pre": string("\n" * 10**6)}, UnsupportedModelError, "does: only llama-bpe"),
        ({"tokenizer.ggml.model": None}, UnsupportedModelError, "'None' tokenizer"),
        ({"tokenizer.ggml.model": string("t5")}, UnsupportedModelError, "'t5' tokenizer: only byte-level"),
        ({"tokenizer.ggml.tokens": None}, BundleError, "no vocabulary"),
        (
            {"tokenizer.ggml.token_type": i32s([1])},
            BundleError,
            "types differ in number",
        ),
        ({"tokenizer.ggml.eos_token_id": u32(2**31)}, BundleError, "eos_token_id is 2147483648"),
        ({"tokenizer.ggml.eos_token_id": u32(5)}, BundleError, "is not among control_tokens"),
        ({"tokenizer.ggml.add_bos_token": u32(1)}, BundleError, "add_bos_token is 1"),
    ],
)
def test_what_is_missing_or_damaged_is_said(
    decoder_file: Path,
    tmp_path: Path,
    metadata: dict[str, bytes | None],
    error: type[Exception],
    problem: str,
) -> None:
    path = rewrite(decoder_file, tmp_path / "decoder.gguf", metadata=metadata)
    with pytest.raises(error, match=problem) as raised:
        read(path)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000
