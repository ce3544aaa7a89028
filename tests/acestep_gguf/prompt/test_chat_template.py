from typing import Any

import pytest

from acestep_gguf.errors import PromptError
from acestep_gguf.prompt.chat_template import ChatTemplate

MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "hi <é>"}]


def render(source: str, messages: list[dict[str, Any]] | None = None, **tokens: str) -> str:
    return ChatTemplate(source, tokens).render(MESSAGES if messages is None else messages)


QWEN = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_a_published_template_with_its_default_system_message() -> None:
    assert render(QWEN) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nhi <é><|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% if true %}\n  x\n{% endif %}", "  x\n"),  # trim_blocks
        ("a\n   {% if true %}x{% endif %}", "a\nx"),  # lstrip_blocks
        ("{{ bos_token }}{{ eos_token }}", "<s></s>"),
        ("{{ messages | tojson }}", '[{"role": "user", "content": "hi <é>"}]'),
        ("{{ messages[0] | tojson(indent=1) }}", '{\n "role": "user",\n "content": "hi <é>"\n}'),
        ("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
        ("{% for m in messages %}{{ loop.length }}{{ loop.last }}{% endfor %}", "1True"),
        ("{% generation %}{{ messages[0].role }}{% endgeneration %}", "user"),
        ("{% set n = namespace(x=1) %}{% for i in [1] %}{% set n.x = n.x * 2 %}{% endfor %}{{ n.x }}", "2"),
        ("{{ 'a' ~ 1 ~ none }}{{ 2 ** 3 }}{{ 7 % 4 }}{{ '%02d' % 5 }}", "a1None8305"),
        ("{{ messages | map(attribute='role') | join(',') }}", "user"),
        ("{{ strftime_now('%%') }}", "%"),
        ("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m('y') | upper }}", "<Y>"),
    ],
)  # fmt: skip
def test_what_templates_may_use(source: str, expected: str) -> None:
    assert render(source, bos_token="<s>", eos_token="</s>") == expected


def test_a_refusal_of_the_template_is_shown() -> None:
    with pytest.raises(PromptError, match="roles must alternate"):
        render("{{ raise_exception('roles must\n  alternate') }}")


HOSTILE = {
    "python": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__.os }}",
    "environment": "{{ self._TemplateReference__context.environment }}",
    "changing the messages": "{{ messages.append(1) }}",
    "files": "{% include '/etc/passwd' %}",
    "endless loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "endless recursion": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "long output": "{% for a in range(99999) %}{{ 'a' * 999 }}{% endfor %}",
    "times": "{{ 'a' * 10**9 }}",
    "list times": "{{ [1] * 10**9 }}",
    "power": "{{ 10**(10**9) }}",
    "wide number": "{{ '%999999999d' % 1 }}",
    "wide format": "{{ '{:>999999999}'.format(1) }}",
    "nested format": "{{ '{:>{w}}'.format(1, w=10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**9) }}",
    "center": "{{ 'a' | center(10**9) }}",
    "indent": "{{ 'a\n' | indent(10**9) }}",
    "lipsum": "{{ lipsum(n=10**9) }}",
    "join": "{{ (['a' * 999] * 99999) | join('b' * 999) }}",
    "doubling by ~": "{% set x = 'aaaaaaaa' %}" + "{% set x = x ~ x %}" * 40,
    "doubling by +": "{% set x = ['a'] %}" + "{% set x = x + x %}" * 40,
    "doubling by a block": "{% set x %}aaaaaaaa{% endset %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 40,
    "doubling by replace": "{% set x = 'aaaaaaaa' %}" + "{% set x = x | replace('a', 'aa') %}" * 40,
    "doubling by nesting": "{% set x = [1] %}" + "{% set x = [x, x] %}" * 60 + "{{ x }}",
    "doubling by JSON": "{% set x = [1] %}" + "{% set x = [x, x] %}" * 60 + "{{ x | tojson }}",
    "map": "{{ ['a'] | map('replace', 'a', 'a' * 9999) | map('replace', 'a', 'a' * 9999) | list }}",
    "deep parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "syntax": "{% if %}",
    "unknown filter": "{{ 1 | nothing }}",
    "missing attribute": "{{ messages.nothing.more }}",
    "adding a list to a string": "{{ 'a' + messages }}",
}  # fmt: skip


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_hostile_templates_end_in_one_sentence(source: str) -> None:
    with pytest.raises(PromptError) as caught:
        render(source)
    assert "\n" not in str(caught.value)


def test_a_huge_template_is_refused() -> None:
    with pytest.raises(PromptError, match="characters"):
        ChatTemplate("a" * 300_000, {})


def test_a_template_is_bounded_anew_for_each_prompt() -> None:
    template = ChatTemplate("{% for a in range(99999) %}{% endfor %}x", {})
    assert [template.render(MESSAGES) for _ in range(12)] == ["x"] * 12
