"""Commands that name no bundle, or name it by its name."""

import json
import os
from pathlib import Path

import pytest

from tests.support.command_line import acestep, check_is_one_line


@pytest.fixture
def env(tmp_path: Path, tiny_bundle: Path) -> dict[str, str]:
    """An environment in which the tiny bundle is the default."""
    env = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "config")}
    assert "tiny is the default" in acestep("use", tiny_bundle, env=env).stdout
    return env


def test_run_needs_no_bundle(tiny_bundle: Path, picture: Path, env: dict[str, str]) -> None:
    options = ("--image", picture, "-n", 4, "--json")
    texts = [
        json.loads(acestep("run", *words, *options, env=env, stdin=stdin).stdout)["text"]
        for words, stdin in (
            ((tiny_bundle, "What is this?"), b""),
            (("tiny", "What is this?"), b""),
            (("What is this?",), b""),
            ((), b"What is this?"),
            (("-",), b"What is this?"),
        )
    ]
    assert len(set(texts)) == 1


def test_other_verbs_need_none(picture: Path, tmp_path: Path, env: dict[str, str]) -> None:
    names = [
        json.loads(acestep("info", *words, "--json", env=env).stdout)["name"] for words in ([], ["tiny"])
    ]
    assert names[0] == names[1]
    assert acestep("encode", picture, "-o", tmp_path / "embeds", env=env).returncode == 0
    assert acestep("chat", env=env, stdin=b"hi\n").returncode == 0
    table = tmp_path / "table.jsonl"
    assert acestep("batch", picture.parent, "-p", "hi", "-n", 2, "-o", table, env=env).returncode == 0
    assert str(picture) in table.read_text()


def test_a_mistake_in_the_name_is_no_question(picture: Path, tmp_path: Path, env: dict[str, str]) -> None:
    check_is_one_line(acestep("info", "tny", env=env), "tny is not a folder, nor a name of")
    check_is_one_line(acestep("run", "tny", "What is this?", env=env), "tny is not a folder")
    check_is_one_line(acestep("run", tmp_path, env=env), f"{tmp_path} is a folder, but neither")
    check_is_one_line(acestep("run", picture, "What is this?", env=env), "is a file, not a question")


def test_without_a_default_it_is_told_how_to_choose_one() -> None:
    check_is_one_line(acestep("run", "What is this?"), "acestep-gguf use BUNDLE")
    done = acestep("info")
    assert done.returncode == 2
    assert "Missing argument '[BUNDLE]'" in done.stderr
    shown = acestep("run", "--help").stdout
    assert "[BUNDLE]" in shown
    assert "{BUNDLE}" not in shown
    assert "[required]" not in shown


def test_list(tiny_bundle: Path, bundle_copy: Path, env: dict[str, str]) -> None:
    assert acestep("use", bundle_copy, "--name", "other", env=env).returncode == 0
    assert acestep("list", env=env).stdout == f"other  {bundle_copy}  default\ntiny   {tiny_bundle}\n"
    (row, _) = json.loads(acestep("list", "--json", env=env).stdout)
    assert row == {"name": "other", "folder": str(bundle_copy), "default": True, "found": True}
    bundle_copy.rename(bundle_copy.with_name("elsewhere"))
    assert "default  gone" in acestep("list", env=env).stdout
    done = acestep("use", "other", "--forget", "--name", "x", env=env)
    check_is_one_line(done, "leave --name out")
    assert acestep("use", "other", "--forget", env=env).returncode == 0
    assert (
        acestep("list", env={**env, "ACESTEP_GGUF_BUNDLE": "x"}).stderr
        == "ACESTEP_GGUF_BUNDLE comes first: x\n"
    )
    assert "no bundle has a name yet" in acestep("list").stderr
