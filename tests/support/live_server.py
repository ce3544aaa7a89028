"""A server in a process of its own, on a free port, and requests to it."""

import base64
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
import openai

KEY = "a key for tests"


@dataclass(frozen=True)
class LiveServer:
    url: str
    process: "subprocess.Popen[str]"
    log: Path

    def client(self, api_key: str = KEY) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=0, timeout=60)

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, headers=headers, timeout=60)

    def ask(self, **body: Any) -> httpx.Response:
        return self.post("/v1/chat/completions", body)

    def metrics(self) -> dict[str, float]:
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return {
            name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")
        }


@contextmanager
def live_server(*arguments: object, env: Mapping[str, str] | None = None) -> Iterator[LiveServer]:
    """``serve`` with one thread and these arguments; killed at the end, unless it has ended."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "acestep_gguf", "serve", "--port", "0", "-t", "1"]
        with log.open("w") as opened:
            process = subprocess.Popen(
                [*command, *map(str, arguments)], stderr=opened, text=True, env={**os.environ, **(env or {})}
            )
        try:
            yield LiveServer(_url(process, log), process, log)
        finally:
            process.kill()
            process.wait()


def _url(process: "subprocess.Popen[str]", log: Path) -> str:
    while True:
        for line in log.read_text().splitlines():
            if line.startswith("listening on "):
                return line.removeprefix("listening on ")
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(f"it has ended: {log.read_text()}")


def data_url(picture: Path | bytes, kind: str = "png") -> str:
    data = picture if isinstance(picture, bytes) else picture.read_bytes()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def about(picture: Path | bytes, text: str = "What is this?") -> list[dict[str, Any]]:
    """Messages of one question about a picture."""
    image = {"type": "image_url", "image_url": {"url": data_url(picture)}}
    return [{"role": "user", "content": [image, {"type": "text", "text": text}]}]


def data_lines(lines: Iterator[str] | Sequence[str]) -> list[str]:
    """The data of events."""
    return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


class Refused(Protocol):
    """A response of whichever client."""

    @property
    def status_code(self) -> int: ...

    @property
    def text(self) -> str: ...


def refusal(response: Refused, status: int, *words: str) -> dict[str, Any]:
    """The error object of a refusal: one line, with ``words`` in its message."""
    assert response.status_code == status, response.text
    error: dict[str, Any] = json.loads(response.text)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    for word in words:
        assert word in error["message"]
    return error
