"""What holds for all verbs, or for several."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.cli.verbs import VERBS, command
from tests.support.command_line import PROGRAM, acestep, check_is_one_line


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["info"]])
def test_it_starts_fast(tiny_bundle: Path, arguments: list[str]) -> None:
    # Seconds of processor time: other programs on the machine do not count.
    seconds = []
    for _ in range(5):
        before = os.times()
        acestep(*arguments, *([tiny_bundle] if arguments == ["info"] else []))
        after = os.times()
        seconds.append(
            after.children_user - before.children_user + after.children_system - before.children_system
        )
    assert min(seconds) < 0.3


@pytest.mark.parametrize("name", VERBS)
def test_the_list_of_verbs_says_what_each_verb_says(name: str) -> None:
    assert command(name).help.partition("\n")[0] == VERBS[name]


@pytest.mark.parametrize("name", VERBS)
def test_help_says_what_a_value_is_not_who_reads_it(name: str) -> None:
    assert "<filled>" not in acestep(name, "--help").stdout


def test_a_verb_imports_no_other_verb() -> None:
    code = "import sys; from acestep_gguf.cli.verbs import VERBS, command\n"
    code += "command('info'); print({f'acestep_gguf.cli.{name}' for name in VERBS} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "{'acestep_gguf.cli.info'}\n"


def test_a_mistyped_verb_is_guessed() -> None:
    done = acestep("rum")
    assert done.returncode == 2
    assert "Did you mean 'run'" in done.stderr


def test_version() -> None:
    done = acestep("--version")
    assert done.returncode == 0
    assert done.stdout.strip()[0].isdigit()


@pytest.mark.slow
def test_wrong_paths(tiny_checkpoint: Path, tmp_path: Path, picture: Path) -> None:
    for verb in (["run"], ["info"]):
        question = ["x"] if verb == ["run"] else []
        check_is_one_line(acestep(*verb, tmp_path / "none", *question), "none")
        check_is_one_line(acestep(*verb, tmp_path, *question), "not a bundle")
        check_is_one_line(acestep(*verb, picture, *question), "not a folder")
        check_is_one_line(acestep(*verb, "x" * 5000, *question), "File name too long")
        check_is_one_line(acestep(*verb, tiny_checkpoint, *question), "acestep-gguf convert")
    check_is_one_line(acestep("convert", tmp_path / "none", tmp_path / "out"), "none")
    assert not (tmp_path / "out").exists()


def change_json(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    raw = json.loads((folder / "bundle.json").read_text())
    change(raw)
    (folder / "bundle.json").write_text(json.dumps(raw))


@pytest.mark.slow
def test_a_damaged_bundle_json(bundle_copy: Path) -> None:
    change_json(bundle_copy, lambda raw: raw.update(min_reader_version=99))
    check_is_one_line(acestep("run", bundle_copy, "x"), "upgrade")
    change_json(bundle_copy, lambda raw: raw.update(min_reader_version=1, image=None))
    check_is_one_line(acestep("run", bundle_copy, "x"), "damaged")
    for text in ("{", "[" * 100_000, ""):
        (bundle_copy / "bundle.json").write_text(text)
        check_is_one_line(acestep("info", bundle_copy), "bundle.json")


def test_files_outside_the_bundle(bundle_copy: Path) -> None:
    change_json(bundle_copy, lambda raw: raw["decoders"]["files"]["Q4_K_M"].update(file="../secret.gguf"))
    check_is_one_line(acestep("run", bundle_copy, "x"), "bare file name")


def test_a_half_written_decoder(bundle_copy: Path) -> None:
    path = bundle_copy / Bundle.read(bundle_copy).decoder().file
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    check_is_one_line(acestep("run", bundle_copy, "x"), path.name, "copy it again")
    check_is_one_line(acestep("info", bundle_copy), path.name, "copy it again")
    # As long as it should be, but the rest was never written.
    path.write_bytes(data[:1000] + bytes(len(data) - 1000))
    check_is_one_line(acestep("run", bundle_copy, "x"), path.name)


def test_wrong_usage_is_status_2(tiny_bundle: Path) -> None:
    for arguments in (["run"], ["run", tiny_bundle, "x", "--nothing"], ["fly"]):
        done = acestep(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def without_roots_rights(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A verb that may read only what permissions let it, even if root runs the tests."""
    if os.geteuid() != 0:
        return acestep(*arguments)
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    drop += ["--inh-caps=-dac_override,-dac_read_search"]
    return subprocess.run(
        [*drop, *PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root may read everything")
def test_what_must_not_be_read_is_told_in_one_line(
    tiny_bundle: Path, decoder_file: Path, picture: Path, tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    try:
        for arguments in (
            ["info", closed],
            ["run", closed / "x", "hi"],
            ["run", tiny_bundle, "hi", "--image", closed / "x.png"],
            ["quantize", closed / "x.gguf", tmp_path / "x.gguf", "Q8_0"],
            ["quantize", decoder_file, closed / "y" / "x.gguf", "Q8_0"],
            ["encode", tiny_bundle, picture, "-o", closed],
        ):
            check_is_one_line(without_roots_rights(*arguments), "Permission denied")
        page = closed / "y" / "x.html"
        check_is_one_line(
            without_roots_rights("quality", tiny_bundle, picture, "--html", page), "another --html"
        )
        assert "Traceback" not in without_roots_rights("verify", closed).stderr
    finally:
        closed.chmod(0o700)


def test_run_and_info_leave_the_bundle_as_it_is(bundle_copy: Path, picture: Path) -> None:
    before = files(bundle_copy)
    acestep("run", bundle_copy, "x", "--image", picture, "-n", 3)
    acestep("info", bundle_copy)
    assert files(bundle_copy) == before


@pytest.mark.parametrize("arguments", [["run", "-t", "1"], ["info"]])
def test_a_closed_pipe_is_no_error(tiny_bundle: Path, arguments: list[str]) -> None:
    question = ["hello"] if arguments[0] == "run" else []
    with subprocess.Popen(
        [*PROGRAM, *arguments, str(tiny_bundle), *question],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.wait(60)
        assert process.stderr.read() == b""


@pytest.mark.parametrize("verb", ["run", "info", "--version"])
@pytest.mark.parametrize(
    ("redirection", "words"),
    [(">/dev/full", "No space left on device"), (">&-", "standard output is closed")],
)
def test_output_that_is_lost_is_an_error(tiny_bundle: Path, verb: str, redirection: str, words: str) -> None:
    arguments = {"run": ["run", tiny_bundle, "hello", "-n", "2", "-t", "1"], "info": ["info", tiny_bundle]}
    line = shlex.join([*PROGRAM, *map(str, arguments.get(verb, [verb]))])
    done = subprocess.run(
        ["sh", "-c", f"{line} {redirection}"], capture_output=True, text=True, check=False, timeout=60
    )
    check_is_one_line(done, words)


def test_words_are_completed(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("acestep-gguf")
    for words, completed in (("ver", "verify"), ("run --ima", "--image"), ("run missing -i", "")):
        env = {
            **os.environ,
            "ACESTEP_GGUF_BUNDLE": str(tmp_path / "missing"),
            "_ACESTEP_GGUF_COMPLETE": "complete_bash",
            "COMP_WORDS": f"acestep-gguf {words}",
            "COMP_CWORD": str(len(words.split())),
        }
        done = subprocess.run([program], env=env, capture_output=True, text=True, check=False)
        assert completed in done.stdout.splitlines() or not completed
        assert done.stderr == ""


def test_help_has_examples_on_lines_of_their_own() -> None:
    lines = [line.strip() for line in acestep("run", "--help").stdout.splitlines()]
    assert 'acestep-gguf run BUNDLE -i photo.jpg "What is this?"' in lines


@pytest.mark.parametrize(
    "verb", [["run", "none", "x"], ["chat", "none"], ["batch", "none", "x", "-o", "x.csv"]]
)
def test_a_schema_that_cannot_be_had_is_refused_before_anything_is_loaded(verb: list[str]) -> None:
    for schema in ('{"$ref": "https://example.com/a"}', "missing.json"):
        check_is_one_line(acestep(*verb, "-j", schema), "--json-schema")
    check_is_one_line(acestep(*verb, "--grammar", "root ::= ("), "--grammar")
