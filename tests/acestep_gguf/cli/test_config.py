import json
from pathlib import Path
from typing import Any

import pytest

from acestep_gguf.cli.config import config_file, user_defaults
from acestep_gguf.cli.option_groups import groups_among
from acestep_gguf.cli.verbs import command
from acestep_gguf.errors import UsageError
from acestep_gguf.options import AnswerOptions, EngineOptions
from tests.support.command_line import acestep, check_is_one_line

GROUPS = (EngineOptions, AnswerOptions)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    config_file().parent.mkdir()
    return config_file()


def test_flags_become_options(file: Path) -> None:
    assert user_defaults(GROUPS) == {}
    file.write_text(
        "[defaults]\nthreads = 6\ncache = false\nrepack = true\ntemp = 1\nstop = ['a', 'b']\nquant = 'Q8_0'\n"
    )
    assert user_defaults(GROUPS) == {
        "n_threads": 6,
        "cache": False,
        "use_extra_bufts": True,
        "temperature": 1,
        "stop": ["a", "b"],
        "quant": "Q8_0",
    }


def test_a_verb_takes_those_of_its_groups(file: Path) -> None:
    file.write_text("[defaults]\nthreads = 6\nn-predict = 9\n")
    for verb, groups in (
        ("run", [*GROUPS]),
        ("chat", [*GROUPS]),
        ("batch", [*GROUPS]),
        ("plan", [EngineOptions]),
        ("serve", [EngineOptions]),  # whose --max-tokens is something else
        ("convert", []),
        ("info", []),
    ):
        assert groups_among(parameter.name for parameter in command(verb).params) == groups
    assert user_defaults([EngineOptions]) == {"n_threads": 6}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[defaults]\nno-mmap = true", "has no-mmap, which is no flag: write mmap = false."),
        ("[defaults]\nt = 2", "here without dashes and in their long form"),
        ("[defaults]\nthread = 6", "has thread, which is no flag"),
        ("[defaults]\nn_threads = 6", "has n_threads, which is no flag"),
        ("[defaults]\nthreads = '6'", "threads is '6': give a whole number."),
        ("[defaults]\nthreads = true", "threads is True: give a whole number."),
        ("[defaults]\ntemp = '1'", "temp is '1': give a number."),
        ("[defaults]\nmmap = 1", "mmap is 1: give true or false."),
        ("[defaults]\nquant = 4", "quant is 4: give a text in quotes."),
        ("[defaults]\nstop = 'a'", "stop is 'a': give a list of texts."),
        ("[defaults]\nstop = [1]", "stop is [1]: give a list of texts."),
        ("[defaults]\ntop-p = 1.5", "--top-p is 1.5: give a number from 0 to 1."),
        ("[defaults]\nspec-type = 'ngram-simple'\ndraft = 'x'", "--spec-type ngram-simple and --draft"),
        ("threads = 6", r"has threads outside of a table [defaults]"),
        ("defaults = 6", r"has defaults outside of a table [defaults]"),
        ("[defaults]\n[run]", r"has run outside of a table [defaults]"),
        ("[defaults", "is no TOML"),
        ("x = " + "[" * 10_000, "is no TOML"),
        ("#" * 2**20 + "\n", "too large"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(file: Path, text: str, words: str) -> None:
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        user_defaults(GROUPS)
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(file: Path) -> None:
    file.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="is no TOML"):
        user_defaults(GROUPS)
    file.unlink()
    file.mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        user_defaults(GROUPS)


def test_a_flag_comes_before_the_file_and_the_file_before_the_default(file: Path, tiny_bundle: Path) -> None:
    def answer(*options: object) -> dict[str, Any]:
        return dict(json.loads(acestep("run", tiny_bundle, "hi", "--json", *options).stdout))

    file.write_text("[defaults]\nn-predict = 3\ntemp = 5.0\nseed = 7\nquant = 'F32'\nmmap = false\n")
    drawn = answer()
    assert (drawn["usage"]["completion_tokens"], drawn["seed"]) == (3, 7)
    assert answer("-n", 2, "-s", 8)["seed"] == 8
    assert answer("-n", 2, "-s", 8)["usage"]["completion_tokens"] == 2
    assert answer("--temp", 0)["seed"] is None
    planned, mapped = (
        json.loads(acestep("plan", tiny_bundle, *options, "--json").stdout)["settings"]
        for options in ([], ["--mmap"])
    )
    assert planned["quant"] == mapped["quant"] == "F32"
    assert (planned["use_mmap"], mapped["use_mmap"]) == (False, True)
    file.write_text("[defaults]\nthread = 6\n")
    check_is_one_line(acestep("run", tiny_bundle, "hi"), str(file), "thread")
    assert acestep("info", tiny_bundle).returncode == 0, "it has none of these options"
