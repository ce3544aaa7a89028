"""llama-server as a peer: started with a decoder and its mmproj, asked as OpenAI's clients ask."""

import base64
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

START_S: Final = 120.0
ANSWER_S: Final = 600.0


class LlamaServer:
    """Runs while the ``with`` block does.

    Args:
        program: of llama.cpp.
        decoder: a GGUF file.
        mmproj: of the same model.
        options: for the program.
    """

    def __init__(self, program: Path, decoder: Path, mmproj: Path, options: Sequence[str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        models = ["-m", str(decoder), "--mmproj", str(mmproj)]
        self._command = [str(program), *models, "--port", str(self._port), *options]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + START_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > end:
                sys.exit(f"{' '.join(self._command)} did not start.")
            time.sleep(0.1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    def ask(self, picture: Path, question: str, n_tokens: int) -> dict[str, Any]:
        """The response to a question about a PNG file; the answer has ``n_tokens``, whatever they are."""
        return ask(f"http://127.0.0.1:{self._port}", picture, question, n_tokens, ignore_eos=True)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health", timeout=1):
                return True
        except (urllib.error.URLError, OSError):
            return False


def ask(url: str, picture: Path, question: str, n_tokens: int, **fields: object) -> dict[str, Any]:
    """The response of a server to a question about a PNG file; ``fields`` are others of the request."""
    data = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    content = [{"type": "image_url", "image_url": {"url": data}}, {"type": "text", "text": question}]
    message = {"role": "user", "content": content}
    body = {"messages": [message], "max_tokens": n_tokens, "temperature": 0, **fields}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=ANSWER_S) as response:
        return dict(json.load(response))
