import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acestep_gguf.answer import Answer, Timings, Usage
from acestep_gguf.bundle.schema import Bundle, PromptSpec
from acestep_gguf.errors import BundleError, DecodeError, PromptError, TemplateLimitError
from acestep_gguf.llama.binding import Model
from acestep_gguf.prompt.builder import ImageSpan, Prompt, PromptBuilder, TokenSpan
from acestep_gguf.prompt.messages import user_message
from tests.support.texts import TEXTS

STRINGS_ONLY = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{{ '<|im_start|>assistant\\n' }}"
)
# As in the llava-hf checkpoints: images of a message first, whatever their place among its parts.
PARTS_ONLY = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}"
    "{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}"
    "{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}{{ '<|im_start|>assistant\\n' }}"
)  # fmt: skip


@pytest.fixture(scope="session")
def spec(tiny_bundle: Path) -> PromptSpec:
    return Bundle.read(tiny_bundle).prompt


@pytest.fixture(scope="session")
def builder(spec: PromptSpec, weights: Model) -> PromptBuilder:
    return PromptBuilder(spec, weights.tokenize, weights.token_bytes)


def with_template(spec: PromptSpec, template: str, model: Model) -> PromptBuilder:
    return PromptBuilder(replace(spec, chat_template=template), model.tokenize, model.token_bytes)


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def written(prompt: Prompt, spec: PromptSpec, model: Model) -> str:
    """The prompt as text, with control tokens by their names."""
    added = spec.control_tokens | spec.user_defined_tokens
    names = {token: name.encode() for name, token in added.items()}
    pieces = [
        b"".join(names.get(token, model.token_bytes(token)) for token in span.tokens)
        if isinstance(span, TokenSpan)
        else b"[%d]" % span.image
        for span in prompt.spans
    ]
    return b"".join(pieces).decode()


def test_a_question_about_two_images(builder: PromptBuilder, spec: PromptSpec, weights: Model) -> None:
    prompt = builder.build([user_message("Same?", ["a.png", "b.png"])])
    assert written(prompt, spec, weights) == (
        "<|im_start|>user\n[0]\n[1]\nSame?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt.images == ("a.png", "b.png")
    assert [type(span) for span in prompt.spans] == [TokenSpan, ImageSpan, TokenSpan, ImageSpan, TokenSpan]


def test_text_between_control_tokens_is_tokenized_as_one_string(
    builder: PromptBuilder, spec: PromptSpec, weights: Model
) -> None:
    (span,) = builder.build(user("\n\nhello the  ")).spans
    assert isinstance(span, TokenSpan)
    start, end = spec.control_tokens["<|im_start|>"], spec.control_tokens["<|im_end|>"]
    assert list(span.tokens) == [
        start,
        *weights.tokenize("user\n\n\nhello the  "),
        end,
        *weights.tokenize("\n"),
        start,
        *weights.tokenize("assistant\n"),
    ]


def test_text_is_normalized(builder: PromptBuilder) -> None:
    assert builder.build(user("e\u0301")).spans == builder.build(user("é")).spans


@pytest.mark.parametrize("template", [STRINGS_ONLY, PARTS_ONLY])
def test_templates_that_know_only_strings_or_only_parts(
    spec: PromptSpec, weights: Model, template: str, builder: PromptBuilder
) -> None:
    conversation = [
        {"role": "system", "content": "be good"},
        user_message("What is <image>?", ["a.png"]),
        {"role": "assistant", "content": "A cat."},
        *user("Sure?"),
    ]
    prompt = with_template(spec, template, weights).build(conversation)
    assert prompt == builder.build(conversation)
    assert "[0]\nWhat is <image>?" in written(prompt, spec, weights)


def test_a_template_that_trims(spec: PromptSpec, weights: Model) -> None:
    trimming = with_template(
        spec, STRINGS_ONLY.replace("message['content']", "message['content'] | trim"), weights
    )
    prompt = trimming.build(user("  a <|im_end|> b \n"))
    assert "user\na <|im_end|> b<|im_end|>" in written(prompt, spec, weights)
    assert trimming.build(user("   "))


def test_a_template_with_a_system_message_of_its_own(spec: PromptSpec, weights: Model) -> None:
    template = "{{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}" + STRINGS_ONLY
    prompt = with_template(spec, template, weights).build(user("x"))
    assert written(prompt, spec, weights).startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user"
    )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0]['content'] | upper }}", "alters"),
        ("{{ messages[0]['content'][:3] }}", "alters|leaves out"),
        ("{{ messages[0]['content'] | replace('e', 'a') }}", "alters"),
        ("{% for m in messages[1:] %}{{ m['content'] }}{% endfor %}x", "leaves out"),
        ("{{ raise_exception('not like this') }}", "not like this"),
        ("{{ '<image>' + messages[0]['content'] }}", "1 places for 0 images"),
        ("{% if 'hello' in messages[0].content %}<|im_end|>{% endif %}{{ messages[0].content }}", "alters"),
    ],
)  # fmt: skip
def test_templates_that_cannot_be_trusted(
    spec: PromptSpec, weights: Model, template: str, message: str
) -> None:
    with pytest.raises(PromptError, match=message):
        with_template(spec, template, weights).build(user("hello <|im_end|>"))


def test_a_template_that_writes_nothing(spec: PromptSpec, weights: Model) -> None:
    assert with_template(spec, "{% set x = 1 %}", weights).build(user("")) == Prompt((), ())


def test_a_template_that_does_too_much_is_stopped_once(spec: PromptSpec, weights: Model) -> None:
    template = "{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(TemplateLimitError):
        with_template(spec, template, weights).build(user("x"))


def test_a_template_without_a_place_for_images(spec: PromptSpec, weights: Model) -> None:
    template = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
    with pytest.raises(PromptError, match="images"):
        with_template(spec, template, weights).build([user_message("x", ["a.png"])])


def test_a_vocabulary_that_makes_control_tokens_of_text_is_refused(spec: PromptSpec, weights: Model) -> None:
    careless = PromptBuilder(
        spec, lambda text: [spec.control_tokens["<|im_end|>"]], token_bytes=weights.token_bytes
    )
    with pytest.raises(BundleError, match="control tokens"):
        careless.build(user("x"))


def answered(text: str, tokens: list[int]) -> Answer:
    usage = Usage(prompt_tokens=1, image_tokens=0, cached_tokens=0, completion_tokens=len(tokens))
    timings = Timings(load_s=0, image_s=0, prefill_s=0, decode_s=0, prefill_tokens=1, decode_tokens=1)
    return Answer(text=text, tokens=tuple(tokens), finish_reason="stop", usage=usage, timings=timings)


def dialogue(answer: str | Answer) -> list[dict[str, Any]]:
    return [*user("Who?"), {"role": "assistant", "content": answer}, *user("Why?")]


def only_tokens(prompt: Prompt) -> list[int]:
    (span,) = prompt.spans
    assert isinstance(span, TokenSpan)
    return list(span.tokens)


@pytest.mark.parametrize("text", ["hello the hello", " \n hello\n", "ö\x1d", " "])
def test_an_answer_keeps_the_tokens_that_the_model_wrote(
    text: str, builder: PromptBuilder, spec: PromptSpec, weights: Model
) -> None:
    before = only_tokens(builder.build(user("Who?")))
    tokens = [token for character in text for token in weights.tokenize(character)]
    prompt = only_tokens(builder.build(dialogue(answered(text, tokens))))
    assert prompt[: len(before) + len(tokens)] == before + tokens
    plain = only_tokens(builder.build(dialogue(text)))
    assert written_tokens(prompt, weights) == written_tokens(plain, weights)


def written_tokens(tokens: list[int], model: Model) -> bytes:
    return b"".join(map(model.token_bytes, tokens))


def test_an_answer_whose_tokens_do_not_spell_it_is_tokenized_as_text(
    builder: PromptBuilder, spec: PromptSpec, weights: Model
) -> None:
    plain = builder.build(dialogue("hello"))
    control = spec.control_tokens["<|im_start|>"]
    for tokens in ([], weights.tokenize("hello the"), [control, *weights.tokenize("hello")]):
        assert builder.build(dialogue(answered("hello", tokens))) == plain
    with pytest.raises(DecodeError, match="outside the vocabulary"):
        builder.build(dialogue(answered("hello", [10**6])))


def test_a_template_that_trims_answers(spec: PromptSpec, weights: Model) -> None:
    template = STRINGS_ONLY.replace("message['content']", "message['content'] | trim")
    trims = with_template(spec, template, weights)
    answer = answered("hello\n", weights.tokenize("hello\n"))
    assert trims.build(dialogue(answer)) == trims.build(dialogue("hello\n")) == trims.build(dialogue("hello"))


def test_an_answer_whose_first_space_the_template_writes(spec: PromptSpec, weights: Model) -> None:
    # As in LLaVA-1.5: "ASSISTANT:" asks for an answer, which begins with a space that is not shown.
    template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '<|im_end|>' }}{% endfor %}{{ 'assistant:' }}"
    )
    builder = with_template(spec, template, weights)
    tokens = weights.tokenize(" he") + weights.tokenize("llo")
    before = only_tokens(builder.build(user("Who?")))
    prompt = only_tokens(builder.build(dialogue(answered("hello", tokens))))
    assert prompt[: len(before) + len(tokens)] == before + tokens
    plain = only_tokens(builder.build(dialogue("hello")))
    assert written_tokens(prompt, weights) == written_tokens(plain, weights)


def check_is_plain(text: str, builder: PromptBuilder, spec: PromptSpec, model: Model) -> None:
    """Control tokens are those of the template, and the rest is the text, normalized and nothing else."""
    prompt = builder.build([user_message(text, ["a.png"])])
    names = {token: name for name, token in spec.control_tokens.items()}
    assert [names[token] for token in prompt.text_tokens if token in names] == [
        "<|im_start|>",
        "<|im_end|>",
        "<|im_start|>",
    ]
    assert len([span for span in prompt.spans if isinstance(span, ImageSpan)]) == 1
    body = unicodedata.normalize("NFC", "\n" + text)
    expected = f"<|im_start|>user\n[0]{body}<|im_end|>\n<|im_start|>assistant\n"
    assert written(prompt, spec, model) == expected


@pytest.mark.parametrize("text", TEXTS)
def test_texts_of_users_stay_text(
    text: str, builder: PromptBuilder, spec: PromptSpec, weights: Model
) -> None:
    check_is_plain(text, builder, spec, weights)


FRAGMENTS = (
    "<|im_end|>",
    "<|im_start|>",
    "<image>",
    "<|im_",
    "end|>",
    "<tool_call>",
    "\ue000",
    "\ue0010.0\ue001",
    "\n",
    " ",
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=5)), max_size=8))
def test_any_text_of_a_user_stays_text(
    pieces: list[str], builder: PromptBuilder, spec: PromptSpec, weights: Model
) -> None:
    check_is_plain("".join(pieces), builder, spec, weights)


def test_control_tokens_stand_around_each_picture(spec: PromptSpec, weights: Model) -> None:
    begin, end = "<|im_start|>", "<|im_end|>"  # for want of others in this vocabulary
    plain = PromptBuilder(spec, weights.tokenize, weights.token_bytes)
    marked = PromptBuilder(
        replace(spec, image_begin=begin, image_end=end), weights.tokenize, weights.token_bytes
    )
    messages = [user_message("What?", ["a.png", "b.png"])]
    expected: list[Any] = []
    for span in plain.build(messages).spans:
        if isinstance(span, ImageSpan):
            expected += [spec.control_tokens[begin], span, spec.control_tokens[end]]
        else:
            expected += span.tokens
    got: list[Any] = []
    for span in marked.build(messages).spans:
        got += [span] if isinstance(span, ImageSpan) else span.tokens
    assert got == expected


IMAGES_ONLY = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("text", "behind"),
    [("What?", " What?"), (" What?", " What?"), ("\nWhat?", "\nWhat?"), ("<b>", "<b>"), ("é", " é")],
)
def test_pictures_share_the_token_around_them_and_words_behind_get_a_space(
    text: str, behind: str, spec: PromptSpec, weights: Model
) -> None:
    around = "<|im_end|>"  # for want of another in this vocabulary
    shared = replace(spec, image_around=around, chat_template=IMAGES_ONLY)
    builder = PromptBuilder(shared, weights.tokenize, weights.token_bytes)
    prompt = builder.build([user_message(text, ["a.png", "b.png"])])
    assert written(prompt, spec, weights) == f"{around}[0]{around}[1]{around}{behind}"
    # A text between two pictures parts them.
    parts = [{"type": "image", "image": "a.png"}, {"type": "text", "text": text}]
    prompt = builder.build(user(parts + parts))
    half = f"{around}[{{}}]{around}{behind}"
    assert written(prompt, spec, weights) == half.format(0) + half.format(1)


def test_a_word_behind_a_picture_gets_one_space_where_any_text_gets_one(
    spec: PromptSpec, weights: Model
) -> None:
    around = "<|im_end|>"
    for space_prefix in ("never", "first", "always", "prepend"):
        spaced = replace(spec, image_around=around, chat_template=IMAGES_ONLY, space_prefix=space_prefix)
        builder = PromptBuilder(spaced, weights.tokenize, weights.token_bytes)
        prompt = builder.build([user_message("What?", ["a.png"])])
        assert written(prompt, spec, weights) == f"{around}[0]{around} What?"
