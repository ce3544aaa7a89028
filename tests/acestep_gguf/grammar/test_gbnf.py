import ctypes
import re
from pathlib import Path
from typing import Any

import pytest

from acestep_gguf.engine.engine import AceStep
from acestep_gguf.errors import UsageError
from acestep_gguf.grammar.matcher import Grammar
from acestep_gguf.llama.binding import Model
from acestep_gguf.llama.library import lib
from acestep_gguf.options import AnswerOptions
from tests.acestep_gguf.grammar.test_matcher import walk

# Each with what Python's regular expressions call the same, if they have a name for it.
GRAMMARS = {
    'root ::= "yes" | "no"': "yes|no",
    'root ::= "a"{2,3} ("b" | "c")? # so many': "a{2,3}[bc]?",
    'root ::= "a" {2} "b"{0,}': "a{2}b*",
    'root ::= ("a" | "ab") "bc"': "(a|ab)bc",
    'root ::= word "." word\nword ::= [a-z.]{1,3}': r"[a-z.]{1,3}\.[a-z.]{1,3}",
    'root ::= |\n  "a" | ("b" | ) "c"': "a?|b?c",
    'root ::= "" x\nx ::=\n  "b"': "b",
    r'root ::= "\x41\u00e9\U0001F389" [\u00df-\u00e1\]"\\-]+': r'Aé🎉[ß-á\]"\\-]+',
    'root ::= "tab\\t" "two\nlines" "/" [/"]': 'tab\ttwo\nlines/[/"]',
    r"root ::= [^a-z\n] . [^\]^-]": r"(?s)[^a-z\n].[^\]^-]",
    "root ::= two-words Two_2\ntwo-words ::= [0-9]\nTwo_2 ::= two-words two-words": "[0-9]{3}",
    'root ::= "(" root ")" | [0-9]{1,2} ("," root)?': None,
    'root ::= root "a" | "b"': "ba*",
    'root ::= x "ab"\nx ::= "a" x | ""': "a*ab",
}


@pytest.mark.parametrize("gbnf", GRAMMARS)
@pytest.mark.parametrize("seed", range(5))
def test_what_is_let_through(gbnf: str, seed: int) -> None:
    text = walk(Grammar.of_gbnf(gbnf), seed)
    assert text is not None
    if GRAMMARS[gbnf] is not None:
        assert re.fullmatch(GRAMMARS[gbnf] or "", text), text


@pytest.mark.parametrize("gbnf", [gbnf for gbnf in GRAMMARS if "root ::= root" not in gbnf])
@pytest.mark.parametrize("options", [{}, {"temperature": 5.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}])
def test_llama_cpp_would_let_it_through_as_well(
    model: AceStep, weights: Model, gbnf: str, options: dict[str, Any]
) -> None:
    answer = model.generate("What is this?", grammar=gbnf, max_tokens=60, seed=5, **options)
    assert llama_cpp_follows(weights, gbnf, answer.tokens)


def llama_cpp_follows(weights: Model, gbnf: str, tokens: tuple[int, ...]) -> bool:
    vocabulary = lib.llama_model_get_vocab(weights.pointer)
    sampler = lib.llama_sampler_init_grammar(vocabulary, gbnf.replace("_2", "-2").encode(), b"root")
    assert sampler
    try:
        for token in tokens:
            one = lib.llama_token_data(token, 0.0, 0.0)
            candidates = lib.llama_token_data_array(ctypes.pointer(one), 1, -1, False)
            lib.llama_sampler_apply(sampler, ctypes.byref(candidates))
            if one.logit != 0.0:
                return False
            lib.llama_sampler_accept(sampler, token)
        return True
    finally:
        lib.llama_sampler_free(sampler)


@pytest.mark.parametrize(
    ("gbnf", "why"),
    [
        ("root ::= <think> [a-z]", "line 1 cannot be read from '<think>"),
        ('root ::= "a"\n\n  "', "line 3"),
        ("root ::= 'a'", "line 1"),
        ('root ::= "\\q"', "line 1"),
        ('root ::= []\nx ::= "a"', "line 1"),
        ("root ::= ::= x", "line 1"),
        ('root ::= "a"{1,20000}', "line 1"),
        ('"a" root ::= "b"', "begins with"),
        ('foo ::= "a"', "no rule root"),
        ("root ::= a-b", "no rule a-b"),
        ('root ::= "a"\nroot ::= "b"', "rule root comes twice"),
        ("root ::= (", "not closed"),
        ("root ::= )", "do not match"),
        (f"root ::= {'(' * 1000}", "deeper"),
        ('root ::= "a"' + "".join(f'\na{i} ::= "b"' for i in range(500)), "after 400 others"),
        ("root ::= [z-a]", "range"),
        ('root ::= "\\ud800"', "scalar"),
        ('root ::= "a"?*', "Expected"),
        ("root ::= root", "no token"),
        (
            "root ::= a0" + "".join(f"\na{i} ::= a{i + 1} a{i + 1}" for i in range(40)) + '\na40 ::= "x"',
            "too big",
        ),
    ],
)
def test_what_cannot_be_had_is_refused_in_a_line(gbnf: str, why: str) -> None:
    with pytest.raises(UsageError) as refusal:
        AnswerOptions(grammar=gbnf)
    assert why in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert refusal.value.settings == ("grammar",)


def test_a_grammar_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "g.gbnf"
    path.write_text('root ::= "yes"')
    for source in (path, str(path)):
        assert walk(Grammar.of_gbnf(source), 1) == "yes"
    with pytest.raises(UsageError, match="is not a file"):
        AnswerOptions(grammar="missing.gbnf")


def test_one_of_both() -> None:
    with pytest.raises(UsageError, match="choose one") as refusal:
        AnswerOptions(grammar='root ::= "a"', json_schema={})
    assert refusal.value.settings == ("json_schema", "grammar")
