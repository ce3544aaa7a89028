import json
import subprocess
import sys
from pathlib import Path

import pytest

from acestep_gguf.convert.checkpoint.folder import CheckpointFolder
from acestep_gguf.errors import CheckpointError
from tests.support.tiny_checkpoints import Layout, TinyCheckpoint


def test_what_is_no_checkpoint_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        CheckpointFolder(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        CheckpointFolder(tmp_path)
    (tmp_path / "bundle.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is a bundle already"):
        CheckpointFolder(tmp_path)


def test_a_name_of_the_hub_gets_the_command_that_downloads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        CheckpointFolder(Path("llava-hf/llava-1.5-7b-hf"))
    command = "`hf download llava-hf/llava-1.5-7b-hf --local-dir llava-1.5-7b-hf`"
    assert str(caught.value).startswith(f"llava-hf/llava-1.5-7b-hf is not a folder: {command} makes one")
    (tmp_path / "models").mkdir()
    for path in ("models/llava", "llava", "/llava-hf/llava", "../llava", "a/b/c", "a/-b"):
        with pytest.raises(CheckpointError, match="give the folder of a Hugging Face checkpoint"):
            CheckpointFolder(Path(path))


def test_what_the_tokenizer_config_says_counts_more_than_the_older_file(tmp_path: Path) -> None:
    for name, content in {
        "config.json": {},
        "special_tokens_map.json": {"bos_token": "<old>", "eos_token": "<end>"},
        "tokenizer_config.json": {"bos_token": "<new>"},
    }.items():
        (tmp_path / name).write_text(json.dumps(content))
    folder = CheckpointFolder(tmp_path)
    assert folder.tokenizer_config == {"bos_token": "<new>", "eos_token": "<end>"}
    assert folder.processor_config == {}


@pytest.mark.parametrize("layout", ["v4", "v5"])
def test_each_file_of_a_checkpoint_is_opened_once(tmp_path: Path, layout: Layout) -> None:
    folder = TinyCheckpoint(layout=layout, n_shards=2).write(tmp_path / "c")
    code = (
        "import sys\n"
        "from collections import Counter\n"
        "from pathlib import Path\n"
        "from acestep_gguf.convert import plan_conversion\n"
        "folder, out = map(Path, sys.argv[1:])\n"
        "opened = Counter()\n"
        "sys.addaudithook(lambda event, args: opened.update([str(args[0])] if event == 'open' else ()))\n"
        "plan_conversion(folder, out)\n"
        "for path in folder.iterdir():\n"
        "    print(path.name, opened[str(path)])\n"
    )
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "out")]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert sorted(lines) == sorted(f"{path.name} 1" for path in folder.iterdir())
