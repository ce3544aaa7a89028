"""Templates made to hang or to fill the memory, by hand and by chance, in a process that has little of it.

Where one of them is not refused, Jinja alone gives the same text.
"""

import re
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acestep_gguf.prompt.template_budget import MAX_SECONDS
from tests.support.template_renderer import Rendering, TemplateRenderer


@pytest.fixture(scope="module")
def renderer() -> Iterator[TemplateRenderer]:
    renderer = TemplateRenderer()
    yield renderer
    renderer.close()


def check(rendering: Rendering) -> None:
    """It is bounded and, where it is no error, exact."""
    assert not rendering.out_of_memory
    assert rendering.cpu_seconds < 2 * MAX_SECONDS
    assert "\n" not in rendering.error
    assert rendering.text == rendering.jinjas_text


def start(**variables: str) -> str:
    return (
        "{% set ns = namespace(" + ", ".join(f"{name}={value}" for name, value in variables.items()) + ") %}"
    )


def often(body: str, rounds: int = 99_999) -> str:
    return f"{{% for i in range({rounds}) %}}{body}{{% endfor %}}"


def endlessly(body: str) -> str:
    return often(often(body))


def keeping(expression: str, setup: str = "") -> str:
    """Keeps each value that ``expression`` makes, in a list of lists."""
    return start(x="[]") + setup + endlessly(f"{{% set ns.x = [ns.x, {expression}] %}}")


TREE = start(x="[1]", y="[1]") + often("{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}", 60)
TUPLES = start(x="(1,)") + often("{% set ns.x = (ns.x, ns.x) %}", 60)
TWINS = "{% set a = 'a' * 500000 ~ 1 %}{% set b = 'a' * 500000 ~ 1 %}"  # equal, and not the same object
PAIRS = "{% set d = dict(['" + "','".join(f"{chr(0x4E00 + i)}b" for i in range(9000)) + "']) %}"

ATTACKS = {
    # numbers
    "powers": "{% set a = 2 %}" + "{% set a = a**64 %}" * 8 + "{{ a }}",
    "products": start(a="3") + often("{% set ns.a = ns.a * ns.a %}"),
    "sums": start(a="3") + often("{% set ns.a = ns.a + ns.a %}"),
    "differences": start(a="3") + often("{% set ns.a = ns.a - (-ns.a) %}"),
    "round": "{{ 1 | round(-1000000000) }}",
    "round up": "{{ 1.5 | round(1000000000, 'ceil') }}",
    "digits": "{{ ('9' * 1000000) | int }}",
    "literal": "{{ " + "9" * 100_000 + " }}",
    "hexadecimal literal": "{{ 0x" + "f" * 100_000 + " }}",
    "infinite literal": "{{ 1e999 }}",
    # formats
    "% *": "{{ '%*d' % (3000000000, 1) }}",
    "% .*": "{{ '%.*f' % (300000000, 1) }}",
    "% in odd": "{{ '%999999999d' is odd }}",
    "% in divisibleby": "{{ '%999999999d' is divisibleby 3 }}",
    "% in select": "{{ ['%999999999d'] | select('even') | list }}",
    "% of safe": "{{ ('%999999999d' | safe) % 1 }}",
    "filter format": "{{ '%3000000000d' | format(1) }}",
    "nested format": "{{ '{0[0]:>{0[1]}}'.format([1, 3000000000]) }}",
    "format width": "{{ '{:3000000000}'.format(1) }}",
    "format_map": "{{ '{a:3000000000}'.format_map({'a': 1}) }}",
    "many fields": "{{ ('{0}' * 100000).format('a' * 100000) }}",
    "strftime": "{{ strftime_now('%999999999d') }}" + often("{{ strftime_now('%c' * 128) }}"),
    # strings
    "doubling": start(x="'aaaaaaaa'") + often("{% set ns.x = ns.x ~ ns.x %}"),
    "doubling blocks": "{% set x %}a{% endset %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60,
    "doubling filter blocks": "{% filter replace('a', 'aaaaaaaaa') %}" * 30 + "a" + "{% endfilter %}" * 30,
    "replace": "{% set x = 'a' * 1000 %}" + "{% set x = x.replace('a', x) %}" * 9,
    "replace nothing": "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
    "replace in safe": "{{ ('a' * 1000 | safe).replace('a', '\"' * 2000) }}",
    "join": "{{ ('b' * 100000).join(['a'] * 100000) }}",
    "join attributes": "{% set a = namespace(x='a' * 100000) %}{{ ([a] * 100000) | join(attribute='x') }}",
    "indent": "{{ ('a\n' * 100000) | indent('b' * 100000) }}",
    "JSON separators": "{{ ([1] * 100000) | tojson(separators=('a' * 100000, 'b')) }}",
    "JSON indent": "{{ ([1] * 100000) | tojson(indent=100000) }}",
    "JSON escapes": keeping("l | tojson", r"{% set l = ['\x00' * 1000, '😀'] %}"),
    "escapes": keeping("l | string", r"{% set l = ['\x00' * 1000, '😀'] %}"),
    "long exception": "{{ raise_exception('a ' * 1000000) }}",
    "characters": "{{ ('€' * 1000000) | list | length }}",
    "upper": keeping("l.upper()", "{% set l = 'ΐ' * 10000 %}"),
    "title": keeping("l | title", "{% set l = 'ŉ' * 100000 %}"),
    "searches": often("{% set x = ('a' * 500000).count('b' + 'a' * 200000) %}"),
    "searches from the right": "{{ ('a' * 500000).rsplit('b' + 'a' * 200000) }}",
    "strip": "{{ ('a' * 500000).strip('b' * 200000 + 'a') }}",
    "trim": "{{ ('a' * 500000) | trim('b' * 200000 + 'a') }}",
    # lists
    "doubling lists": start(x="[1]") + often("{% set ns.x = ns.x + ns.x %}"),
    "tree as text": TREE + "{{ ns.x }}",
    "tree as JSON": TREE + "{{ ns.x | tojson }}",
    "tree as exception": TREE + "{{ raise_exception(ns.x) }}",
    "trees compared": TREE + "{{ ns.x == ns.y }}",
    "trees sorted": TREE + "{{ [ns.x, ns.y] | sort }}",
    "tuple as key": TUPLES + "{{ {ns.x: 1} }}",
    "tuple as index": TUPLES + "{{ messages[0][ns.x] }}{{ messages[0].get(ns.x) }}",
    "tuple sought": TUPLES + "{{ ns.x in messages[0] }}",
    "tuples made unique": TUPLES + "{{ [ns.x] | unique | list }}",
    "namespaces": start(x="1") + often("{% set ns.x = namespace(a=ns.x, b=ns.x) %}", 60) + "{{ ns.x }}",
    "namespace in itself": start(x="1") + "{% set ns.x = [ns] %}{{ ns.x }}{{ ns.x | tojson }}",
    "sum": "{{ ([[1]] * 100000) | sum(start=[]) | length }}",
    "sort by attributes": TWINS
    + "{{ ([{'a': a}, {'a': b}] * 9) | sort(attribute=(['a'] * 60000) | join(',')) }}",
    "sort by a namespace's attribute": TWINS
    + "{{ ([namespace(x=a), namespace(x=b)] * 50000) | sort(attribute='x') }}",
    "equal strings": TWINS + endlessly("{% set x = a == b and a <= b and a in [b] %}"),
    "equal keys": TWINS + "{% set d = {a: 1} %}" + endlessly("{% set x = d[b] %}"),
    "long attribute": "{{ range(99999) | map(attribute=(['real'] * 50000) | join('.')) | list }}",
    "chains of map": start(x="['a']") + often("{% set ns.x = ns.x | map('upper') %}") + "{{ ns.x | list }}",
    "map": "{{ ['a'] | map('replace', 'a', 'a' * 9999) | map('replace', 'a', 'a' * 9999) | list }}",
    "map list": "{{ (['a' * 50000] * 1000) | map('list') | list | length }}",
    "select": "{{ range(99999) | select('in', ['a'] * 99999) | list }}",
    # loops and macros
    "loops": endlessly(""),
    "filtered loops": often("{% for j in range(99999) if j < 0 %}{% endfor %}"),
    "loop.length": often("{% for j in range(99999) %}{{ loop.length }}{% endfor %}"),
    "loop.changed": TWINS + "{% for i in range(99999) %}{{ loop.changed(a if i is odd else b) }}{% endfor %}",
    "loop.cycle": often("{{ loop.cycle('a' * 100000, 1) }}"),
    "recursion": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "exponential recursion": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}"
    "{{ m(60) }}",
    "output": "{% set x = 'a' * 1000000 %}" + endlessly("{{ x }}"),
    "output of a macro": "{% macro m() %}" + endlessly("a") + "{% endmacro %}{{ m() }}",
    "arguments": start(x="[]") + "{% macro m() %}{% set ns.x = [ns.x, varargs] %}{% endmacro %}"
    + often("{{ m(*range(9999)) }}"),
    "named arguments": start(x="[]") + PAIRS + "{% macro m() %}{% set ns.x = [ns.x, kwargs] %}{% endmacro %}"
    + often("{{ m(**d) }}"),
    # values that are kept
    "kept lists": keeping("[" + "1," * 9000 + "]"),
    "kept lists of lists": keeping("[" + "[]," * 3000 + "]"),
    "kept dicts": keeping("{" + ",".join(f"{i}: 1" for i in range(4000)) + "}"),
    "kept ranges": keeping("range(9999) | list"),
    "kept sorted ranges": keeping("range(9999) | sort"),
    "kept slices": keeping("l[1:]", "{% set l = [1] * 100000 %}"),
    "kept slices of text": keeping("l[1:]", "{% set l = 'a' * 100000 %}"),
    "kept characters": keeping("l[1]", "{% set l = '€' * 10 %}"),
    "kept items": keeping("d.items() | list", PAIRS),
    "kept methods": keeping("'a'.upper"),
    "kept loops": start(x="[]") + often("{% for j in [1] %}{% set ns.x = [ns.x, loop] %}{% endfor %}"),
    "kept undefined names": keeping("ns.nothing"),
    "kept numbers": keeping("i + 99999999"),
    "kept pieces": keeping("('a ' * 40000).split()"),
    "kept macros": start(x="[]") + "{% macro m() %}{% endmacro %}{% set ns.x = [ns.x, m] %}" * 2000,
    "kept macros of loops": start(x="[]") + often("{% macro m() %}{% endmacro %}{% set ns.x = [ns.x, m] %}"),
    # source
    "long": "a" * 300_000,
    "many outputs": "{{a}}" * 26_000,
    "many macros": "{% macro m() %}{% endmacro %}" * 4000,
    "elif": "{% if a %}" + "{% elif a %}b" * 6000 + "{% endif %}",
    "fewer elif": "{% if a %}" + "{% elif a %}b" * 2500 + "{% endif %}",
    "parentheses": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "not": "{{ " + "not " * 20_000 + "1 }}",
    "attributes": "{{ a" + ".a" * 60_000 + " }}",
    "filters": "{{ a" + " | d" * 30_000 + " }}",
    "chained comparisons": "{{ 1" + " < 2" * 9000 + " }}",
    "loops in loops": "{% for a in [1] %}" * 60 + "{% endfor %}" * 60,
}  # fmt: skip


@pytest.mark.parametrize("template", ATTACKS.values(), ids=ATTACKS)
def test_an_attack_ends_soon_and_in_little_memory(template: str, renderer: TemplateRenderer) -> None:
    check(renderer.render(template))


# What a hostile template is made of: each <kind> is replaced by something of that kind. Variables keep their
# kinds, so that few templates end in a type error; most values are made of earlier ones, so that they grow.
GRAMMAR = {
    "text": [
        "ns.t", "a", "messages[1].content", "'a'", "'a b'", "'%9999999d'", "'{0:>{1}}'", "'{}{}'", "'€😀ΐ'",
        r"'\x00\n'", "'a' * 99999", "(<text> + <text>)", "(<text> ~ <any>)", "(<text> * <number>)",
        "(<text> % <any>)", "<list>[0]", "<text>[<number>:<number>]", "<text>[::-1]", "<text>.upper()",
        "<text>.strip(<text>)", "<text>.title()", "<text>.replace(<text>, <text>)",
        "<text>.replace('a', <text>)", "<text>.replace('', <text>)", "<text>.format(<any>, <any>)",
        "<text>.join(<list>)", "<text>.ljust(<number>)", "<text>.zfill(<number>)", "(<text> | upper)",
        "(<text> | safe)", "(<text> | trim(<text>))", "(<text> | replace('a', <text>))",
        "(<text> | indent(<number>))", "(<text> | indent(<text>))", "(<any> | string)", "(<any> | tojson)",
        "(<any> | tojson(indent=8))", "(<any> | tojson(separators=(<text>, <text>)))", "(<any> | capitalize)",
        "(<list> | join)", "(<list> | join(<text>))", "(<list> | max)", "(<list> | first)", "(<dict> | join)",
        "(<text> | center(<number>))", "(<text> | format(<any>))", "m(<any>, <any>)", "m(*<list>)",
        "(<text> if <number> else <text>)", "strftime_now(<text>)", "loop.cycle(<text>, <text>)",
    ],
    "list": [
        "ns.l", "messages", "[1, 'b']", "[1] * 9999", "range(99999)", "['a' * 999] * 99", "(1,)",
        "(<list> + <list>)", "[<any>, <any>]", "(<any>, <any>)", "([<any>] * <number>)", "<list>[1:]",
        "<list>[<number>:<number>]", "<text>.split()", "<text>.split(<text>)", "<dict>.items()",
        "<dict>.values()", "(<list> | list)", "(<text> | list)", "(<list> | sort)",
        "(<list> | sort(attribute=<text>))", "(<list> | unique | list)", "(<list> | reverse | list)",
        "(<list> | map('upper'))", "(<list> | map('list'))", "(<list> | map('string') | list)",
        "(<list> | map('replace', 'a', <text>))", "(<list> | select('in', <list>))",
        "(<list> | map(attribute=<text>) | list)", "(<dict> | dictsort)", "(<dict> | items | list)",
        "(<list> | batch(<number>) | list)", "(<list> | sum(start=[]))", "range(<number>)",
        "(<list> or <list>)",
    ],
    "number": [
        "ns.n", "i", "0", "-1", "64", "99999", "9223372036854775807", "1.5", "(<number> + <number>)",
        "(<number> - <number>)", "(<number> * <number>)", "(<number> ** <number>)", "(<number> // <number>)",
        "(-<number>)", "(<text> | length)", "(<list> | length)", "(<text> | int)",
        "(<number> | round(<number>))", "(<any> == <any>)", "(<list> < <list>)", "(<any> in <list>)",
        "(<any> in <dict>)", "(<text> in <text>)", "<text>.count(<text>)", "<text>.find(<text>)",
        "(not <any>)", "(<any> is odd)", "(<any> is divisibleby <number>)", "(<any> is in <list>)",
        "(<any> is sameas <any>)", "<text>.startswith(<text>)", "loop.length", "loop.changed(<any>)",
    ],
    "dict": [
        "ns.d", "messages[0]", "{}", "{'a': <any>, 'b': <any>}", "{<any>: <any>}", "dict(<dict>, **<dict>)",
        "dict(a=<any>)", "dict(<list>)", "dict(<dict>)", "(<dict> or <dict>)",
    ],
    "any": [
        "ns.l", "loop", "varargs", "kwargs", "ns", "none", "m", "nothing", "<text>", "<list>", "<number>",
        "<dict>", "<dict>[<any>]", "<dict>.get(<any>, <any>)", "<list>[<number>]",
        "namespace(x=<any>, y=<any>)", "(<list> | map('upper'))", "(<any> | default(<any>))",
    ],
    "statement": [
        "{% set ns.t = ns.t ~ ns.t %}", "{% set ns.l = [ns.l, ns.l] %}", "{% set ns.l = ns.l + ns.l %}",
        "{% set a = <text> %}", "{% set ns.t = <text> %}", "{% set ns.l = <list> %}",
        "{% set ns.n = <number> %}", "{% set ns.d = <dict> %}", "{% set ns.l = [ns.l, <any>] %}",
        "{% set ns.d = {'a': ns.d, 'b': <any>} %}", "{{ <text> }}", "{{ <any> }}",
        "{% set a %}<statement>{% endset %}", "{% filter upper %}<statement>{% endfilter %}",
        "{% for i in range(99999) %}<statement>{% endfor %}",
        "{% for i in range(99999) %}<statement><statement>{% endfor %}",
        "{% for i in <list> %}<statement>{% endfor %}",
        "{% for i in <list> if <any> %}<statement>{% endfor %}",
        "{% for i, a in <dict>.items() %}<statement>{% endfor %}",
        "{% if <any> %}<statement>{% else %}<statement>{% endif %}", "<statement><statement><statement>",
    ],
    "template": [
        "{% set ns = namespace(t='aaaaaaaa', l=[1, 'b'], n=3, d={'a': 1}) %}{% set a, i = 'a', 7 %}"
        "{% macro m(a, i) %}<statement>{% endmacro %}<statement><statement>{{ ns.l }}{{ ns.d }}",
    ],
}  # fmt: skip


@st.composite
def written(draw: st.DrawFn, kind: str, depth: int = 5) -> str:
    forms = [form for form in GRAMMAR[kind] if depth > 0 or not HOLE.search(form)]
    return HOLE.sub(lambda hole: draw(written(hole[1], depth - 1)), draw(st.sampled_from(forms)))


HOLE = re.compile("<(" + "|".join(GRAMMAR) + ")>")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(template=written("template"))
def test_any_template_ends_soon_and_in_little_memory(template: str, renderer: TemplateRenderer) -> None:
    check(renderer.render(template))
