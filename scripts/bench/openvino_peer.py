"""OpenVINO GenAI as a peer, in an environment of its own: its packages ask for other versions than ours do.

The model is converted by optimum-intel from a checkpoint, and answers in a process that reads blocks of
pictures from standard input, or one picture after another to see when the first token comes.
"""

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import platformdirs

PACKAGES: Final = ("openvino", "openvino-genai", "openvino-tokenizers", "optimum-intel", "nncf", "pillow")
TORCH: Final = "torch==2.13.0"
# The weights of all layers in 4 bits, as those of a Q4_K_M; the tower stays in 8.
WEIGHTS: Final = ("--weight-format", "int4", "--group-size-fallback", "adjust")
WORKER: Final = Path(__file__).with_name("openvino_worker.py")
FIRST_TOKENS: Final = Path(__file__).with_name("openvino_first_tokens.py")


def environment() -> Path:
    """Folder of the environment's programs; made on the first call, which downloads about 3 GB."""
    folder = platformdirs.user_cache_path("acestep-gguf-bench") / "openvino"
    programs = folder / "bin"
    if not (programs / "optimum-cli").exists():
        venv.create(folder, with_pip=True)
        subprocess.run([programs / "pip", "install", *PACKAGES, TORCH], check=True)
    return programs


def convert(checkpoint: Path, model: Path) -> None:
    """Convert a checkpoint of the LLaVA layout; a name that is missing ends this program.

    optimum-intel goes on with random weights in the place of a tensor that it does not find.
    """
    part = model.with_name(model.name + ".part")
    command = [str(environment() / "optimum-cli"), "export", "openvino", "-m", str(checkpoint)]
    task = ["--task", "image-text-to-text", *WEIGHTS]
    done = subprocess.run(
        [*command, *task, str(part)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode or "MISSING" in done.stdout:
        sys.exit(f"optimum-cli failed:\n{done.stdout[-2000:]}")
    # Without torchvision, the size of pictures is left out, and the default does not fit the tower.
    shutil.copy(checkpoint / "preprocessor_config.json", part)
    part.rename(model)


def first_tokens(model: Path) -> list[str]:
    """Command that waits for the first token about each picture; behind it come a question and pictures."""
    return [str(environment() / "python"), str(FIRST_TOKENS), str(model)]


class OpenVino:
    """A ContinuousBatchingPipeline with its defaults, while the ``with`` block runs."""

    def __init__(self, model: Path) -> None:
        self._command = [str(environment() / "python"), str(WORKER), str(model)]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._answer()  # that it is ready
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    def ask(self, pictures: Sequence[Path], question: str, n_tokens: int) -> dict[str, Any]:
        """Seconds and numbers of tokens of the answers about each of the pictures."""
        assert self._process.stdin is not None
        task = {"pictures": [str(path) for path in pictures], "question": question, "n_tokens": n_tokens}
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line.startswith("{"):  # libraries print, too
                return dict(json.loads(line))
        sys.exit(f"{' '.join(self._command)} ended.")
