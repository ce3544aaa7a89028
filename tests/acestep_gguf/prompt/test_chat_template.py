from typing import Any

import pytest

from acestep_gguf.errors import PromptError, TemplateLimitError
from acestep_gguf.prompt.chat_template import ChatTemplate
from acestep_gguf.prompt.template_sandbox import DICT_METHODS, FILTERS, STRING_METHODS
from tests.support import template_renderer
from tests.support.template_renderer import jinjas_rendering

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
        ("{{ 'a' ~ 1 ~ none }}{{ 2 ** 3 }}{{ 7 % 4 }}", "a1None83"),
        ("{{ messages | map(attribute='role') | join(',') }}", "user"),
        ("{{ strftime_now('%%') }}", "%"),
        ("{% for i in [1, 2] %}{% if nothing | default(loop) %}{{ i }}{% endif %}{% endfor %}", "12"),
        ("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m('y') | upper }}", "<Y>"),
    ],
)  # fmt: skip
def test_what_templates_may_use(source: str, expected: str) -> None:
    assert render(source, bos_token="<s>", eos_token="</s>") == expected


def test_a_refusal_of_the_template_is_shown() -> None:
    with pytest.raises(PromptError, match="roles must alternate"):
        render("{{ raise_exception('roles must\n  alternate') }}")


def test_the_generation_tag_is_a_scope() -> None:  # as in transformers
    assert render("{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}") == "21"


# Each is used as templates use it, so that a filter that Jinja calls otherwise is noticed.
FILTER_USES = {
    "abs": "-3 | abs", "capitalize": "'aB' | capitalize", "count": "[1, 2] | count", "d": "x | d('y')",
    "default": "'' | default('y', true)", "dictsort": "{'b': 1, 'a': 2} | dictsort", "first": "'ab' | first",
    "float": "'1.5' | float", "indent": "'a\nb' | indent(2, first=true)", "int": "'12' | int",
    "items": "{'a': 1} | items | list", "join": "['a', 1] | join(', ')", "last": "[1, 2] | last",
    "length": "'abc' | length", "list": "'ab' | list", "lower": "'AB' | lower",
    "map": "messages | map(attribute='role') | map('upper') | list", "max": "[1, 3, 2] | max",
    "min": "['b', 'A'] | min", "reject": "[1, 2] | reject('odd') | list",
    "rejectattr": "messages | rejectattr('role', 'equalto', 'user') | list",
    "replace": "'aaa' | replace('a', 'b', 2)", "reverse": "'abc' | reverse", "safe": "('<' | safe) + '<'",
    "select": "[1, none] | select | list",
    "selectattr": "messages | selectattr('role', 'in', ['user']) | list",
    "sort": "messages | sort(attribute='role', reverse=true)", "string": "[1, 'é'] | string",
    "title": "'ab cd' | title", "tojson": "{'é': [1, none]} | tojson", "trim": "' a ' | trim",
    "unique": "[1, 2, 1] | unique | list", "upper": "'ab' | upper",
}  # fmt: skip
METHOD_USES = {
    "capitalize": "'aB'.capitalize()", "count": "'abab'.count('ab')", "endswith": "'ab'.endswith(('x', 'b'))",
    "find": "'abc'.find('c', 1)", "format": "'{}{x}{{}}'.format(1, x='é')", "index": "'ab'.index('b')",
    "isalnum": "'a1'.isalnum()", "isalpha": "'a'.isalpha()", "isdigit": "'1'.isdigit()",
    "islower": "'a'.islower()", "isspace": "' '.isspace()", "isupper": "'A'.isupper()",
    "join": "', '.join(messages | map(attribute='role'))", "lower": "'A'.lower()", "lstrip": "' a '.lstrip()",
    "removeprefix": "'ab'.removeprefix('a')", "removesuffix": "'ab'.removesuffix('b')",
    "replace": "'aa'.replace('a', 'b', 1)", "rstrip": "'a\n'.rstrip('\n')", "split": "'a b c'.split(' ', 1)",
    "startswith": "'ab'.startswith('a')", "strip": "' a '.strip()", "title": "'a b'.title()",
    "upper": "'a'.upper()",
    "get": "messages[0].get('x', 'y')", "items": "{'a': 1}.items() | list", "keys": "{'a': 1}.keys() | list",
    "values": "{'a': 1}.values() | list",
}  # fmt: skip


def test_all_of_them_are_here() -> None:
    assert FILTER_USES.keys() == FILTERS.keys()
    assert METHOD_USES.keys() == STRING_METHODS.keys() | DICT_METHODS.keys()


@pytest.mark.parametrize("expression", [*FILTER_USES.values(), *METHOD_USES.values()])
def test_what_is_allowed_gives_what_it_gives_in_jinja(expression: str) -> None:
    template = "{{ " + expression + " }}"
    assert render(template, messages=template_renderer.MESSAGES) == jinjas_rendering(template)


HOSTILE = {
    "python": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__.os }}",
    "globals by a filter": "{{ ([raise_exception] | map(attribute='__globals__') | first).os }}",
    "globals by format": "{{ '{0.__globals__}'.format(raise_exception) }}",
    "environment": "{{ self._TemplateReference__context.environment }}",
    "changing the messages": "{{ messages.append(1) }}",
    "files": "{% include '/etc/passwd' %}",
    "importing": "{% from '/etc/passwd' import x %}",
    "extending": "{% extends '/etc/passwd' %}",
    "recursive loops": "{% for a in [[1]] recursive %}{{ loop(a) }}{% endfor %}",
    "lipsum": "{{ lipsum(n=10**9) }}",
    "a filter that no template needs": "{{ 'a' | center(9) }}",
    "a method that no template needs": "{{ 'a'.zfill(9) }}",
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


def test_a_refused_filter_does_not_matter_where_it_is_not_reached() -> None:
    assert render("{% if tools is defined %}{{ tools | pprint }}{% endif %}x") == "x"


def test_a_template_that_does_too_much_is_told_from_one_that_refuses() -> None:
    with pytest.raises(TemplateLimitError, match="128 MiB"):
        render("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")


def test_a_template_is_bounded_anew_for_each_prompt() -> None:
    template = ChatTemplate("{% for a in range(99999) %}{% endfor %}" * 9 + "x", {})
    assert [template.render(MESSAGES) for _ in range(4)] == ["x"] * 4


def test_a_long_conversation_is_within_the_bounds() -> None:
    messages = [
        {"role": ("user", "assistant")[number % 2], "content": "word " * 50} for number in range(4000)
    ]
    assert render(QWEN, messages).count("<|im_end|>") == 4001


def test_a_template_that_python_warns_of_is_compiled_without_a_word(recwarn: pytest.WarningsRecorder) -> None:
    assert render("{{ 1[0] }}") == ""
    assert not recwarn.list
