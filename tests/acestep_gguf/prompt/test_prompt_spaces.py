"""Where SentencePiece vocabularies get a space or a first token; here a token is a character."""

from typing import Any

import pytest

from acestep_gguf.bundle.schema import PromptSpec, SpacePrefix
from acestep_gguf.prompt.builder import ImageSpan, PromptBuilder
from acestep_gguf.prompt.messages import user_message

BOS, EOS, IMAGE, TOOL = 0x110001, 0x110002, 0x110003, 0x110004
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}:"
    "{% for part in m.content if part.type == 'image' %}<image>{% endfor %}"
    "{% for part in m.content if part.type == 'text' %}{{ part.text }}{% endfor %}</s>{% endfor %}"
)


def spec(space_prefix: SpacePrefix, *, add_bos: bool = True, template: str = TEMPLATE) -> PromptSpec:
    return PromptSpec(
        image_token="<image>",
        chat_template=template,
        template_tokens={"bos_token": "<s>"},
        control_tokens={"<s>": BOS, "</s>": EOS, "<image>": IMAGE},
        user_defined_tokens={"<tool>": TOOL},
        stop_tokens=("</s>",),
        normalizer=None,
        add_bos=add_bos,
        space_prefix=space_prefix,
    )


def written(spec: PromptSpec, *questions: Any) -> str:
    """The prompt with a line for each control token and its name."""
    names = {BOS: "[s]", EOS: "[/s]", TOOL: "[tool]"}
    builder = PromptBuilder(spec, lambda text: [*map(ord, text)], lambda token: chr(token).encode())
    prompt = builder.build([user_message(*question) for question in questions])
    return "".join(
        "[image]"
        if isinstance(span, ImageSpan)
        else "".join(names.get(token) or chr(token) for token in span.tokens)
        for span in prompt.spans
    )


@pytest.mark.parametrize(
    ("space_prefix", "expected"),
    [
        ("never", "[s]user:[image]x[/s]user: y[tool]z[/s]"),
        ("first", "[s] user:[image]x[/s]user: y[tool]z[/s]"),
        ("always", "[s] user:[image] x[/s] user: y[tool] z[/s]"),
        ("prepend", "[s] user:[image] x[/s] user: y[tool] z[/s]"),
    ],
)
def test_which_texts_get_a_space(space_prefix: SpacePrefix, expected: str) -> None:
    assert written(spec(space_prefix), ("x", ["a.png"]), (" y<tool>z", [])) == expected


@pytest.mark.parametrize(
    ("space_prefix", "expected"),
    [("never", " x"), ("first", " x"), ("always", " x"), ("prepend", "  x")],
)
def test_a_text_that_begins_with_a_space(space_prefix: SpacePrefix, expected: str) -> None:
    template = "{{ messages[0].content[0].text }}"
    assert written(spec(space_prefix, template=template), (" x", [])) == f"[s]{expected}"
    assert written(spec(space_prefix, template=template), ("▁x", [])) == f"[s]{expected[:-2]}▁x"


def test_a_text_behind_the_templates_own_bos_is_not_the_first() -> None:
    own = spec("first", template="<s>" + TEMPLATE)
    assert written(own, ("x", [])) == "[s]user:x[/s]"
    assert written(spec("first", template="<s>" + TEMPLATE, add_bos=False), ("x", [])) == "[s]user:x[/s]"


def test_bos_typed_by_a_user_is_text() -> None:
    template = "{{ messages[0].content[0].text }}"
    assert written(spec("first", template=template), ("<s>x", [])) == "[s] <s>x"


def test_bos_must_be_a_control_token() -> None:
    with pytest.raises(ValueError, match="not among control_tokens"):
        PromptSpec(
            image_token=None,
            chat_template="",
            template_tokens={},
            control_tokens={},
            user_defined_tokens={},
            stop_tokens=(),
            normalizer=None,
            add_bos=True,
        )
