"""Load a server with clients of all kinds, and see that each gets the answer for its own picture.

    acestep-gguf convert acestep_gguf/demo demo-bundle -q Q4_K_M
    python -m scripts.checks.server_load --clients 8 --minutes 2 demo-bundle

One request in ten has a broken picture, one leaves early, one asks by a schema; half of the others stream.
What is right is known twice: what one answer at a time says about the picture, and the question's one right
answer, where answers that were written together differ from it. Memory is anonymous: the most of the half
minute after the first 50 answers, and of the last half minute. ``--url`` loads another server, llama-server
for one, which is not started, watched or ended.
"""

import argparse
import base64
import io
import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import httpx
from PIL import Image

from acestep_gguf import AceStep
from scripts.demo.questions import SKILLS, HeldOut, held_out_questions

FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
LOSSLESS: Final = ("PNG", "BMP", "TIFF")
WARM_AFTER: Final = 50
MOST_GROWTH: Final = 1.05
MAX_TOKENS: Final = 80
SCHEMA: Final = {
    "type": "object",
    "properties": {"answer": {"type": "string", "maxLength": 40}},
    "required": ["answer"],
}
BROKEN: Final = (b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(200), b"%PDF-1.7 broken", b"GIF89a")


@dataclass(frozen=True)
class Case:
    """A question with its pictures as a request has them, and what is right."""

    messages: list[dict[str, Any]]
    right: frozenset[str]


@dataclass
class Record:
    """What came of all requests."""

    counts: Counter[str] = field(default_factory=Counter)
    first_token_s: list[float] = field(default_factory=list)
    wrong: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, what: str, first_s: float | None = None) -> None:
        with self.lock:
            self.counts[what] += 1
            if first_s is not None:
                self.first_token_s.append(first_s)


def file_of(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.convert("RGB").save(file, kind)
    return file.getvalue()


def messages_of(asked: HeldOut, kinds: list[str]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for image, kind in zip(asked.images, kinds, strict=True):
        data = base64.b64encode(file_of(image, kind)).decode()
        url = f"data:image/{kind.lower()};base64,{data}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return [{"role": "user", "content": [*parts, {"type": "text", "text": asked.question.text}]}]


def cases(bundle: Path, per_skill: int, rng: Random) -> list[Case]:
    """Questions of every kind, with pictures of every format; answered one at a time first."""
    made = []
    with AceStep(bundle) as model:
        for skill in SKILLS:
            for asked in held_out_questions(skill, per_skill):
                kinds = [rng.choice(FORMATS) for _ in asked.images]
                pictures = [file_of(image, kind) for image, kind in zip(asked.images, kinds, strict=True)]
                alone = model.generate(asked.question.text, pictures, max_tokens=MAX_TOKENS).text
                right = frozenset({alone.strip(), asked.question.answer})
                made.append(Case(messages_of(asked, kinds), right))
    return made


def client(url: str, asked: list[Case], until: float, record: Record, rng: Random) -> None:
    with httpx.Client(base_url=url, timeout=120) as http:
        while time.monotonic() < until:
            case, kind = rng.choice(asked), rng.random()
            body: dict[str, Any] = {"messages": case.messages, "max_tokens": MAX_TOKENS, "temperature": 0}
            try:
                if kind < 0.1:
                    broken(http, body, record, rng)
                elif kind < 0.2:
                    leave_early(http, body, record)
                elif kind < 0.3:
                    by_schema(http, body, record)
                elif kind < 0.65:
                    stream(http, body, case, record)
                else:
                    whole(http, body, case, record)
            except (httpx.HTTPError, KeyError, ValueError, IndexError) as error:
                record.add(f"failed: {type(error).__name__}")


def check(text: str, case: Case, record: Record) -> None:
    if text.strip() in case.right:
        record.add("right")
    else:
        record.add("wrong")
        record.wrong.append((min(case.right, key=len), text))


def whole(http: httpx.Client, body: dict[str, Any], case: Case, record: Record) -> None:
    response = http.post("/v1/chat/completions", json=body)
    if response.status_code == 429:
        record.add("told to come later")
        time.sleep(1)
        return
    check(response.raise_for_status().json()["choices"][0]["message"]["content"], case, record)


def pieces(http: httpx.Client, body: dict[str, Any]) -> Iterator[str]:
    with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if line.startswith("data: {"):
                choices = json.loads(line[6:])["choices"]
                yield (choices and choices[0]["delta"].get("content")) or ""


def stream(http: httpx.Client, body: dict[str, Any], case: Case, record: Record) -> None:
    began, first, text = time.monotonic(), None, ""
    for piece in pieces(http, body):
        if piece and first is None:
            first = time.monotonic() - began
        text += piece
    record.add("streamed", first)
    check(text, case, record)


def leave_early(http: httpx.Client, body: dict[str, Any], record: Record) -> None:
    for _ in zip(range(3), pieces(http, body), strict=False):
        pass
    record.add("left early")


def by_schema(http: httpx.Client, body: dict[str, Any], record: Record) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    choice = http.post("/v1/chat/completions", json={**body, "response_format": form}).json()["choices"][0]
    value = json.loads(choice["message"]["content"]) if choice["finish_reason"] == "stop" else {"answer": ""}
    record.add("by a schema" if [*value] == ["answer"] else "not as the schema says")


def broken(http: httpx.Client, body: dict[str, Any], record: Record, rng: Random) -> None:
    data = base64.b64encode(rng.choice(BROKEN)).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    body = {**body, "messages": [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]}
    status = http.post("/v1/chat/completions", json=body).status_code
    record.add("broken, refused" if 400 <= status < 500 else f"broken, but {status}")


class Memory:
    """Anonymous memory of a process, sampled; the most since ``begin``, in bytes."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self.samples: list[tuple[float, int]] = []

    def watch(self, until: float) -> None:
        while time.monotonic() < until:
            found = re.search(r"RssAnon:\s+(\d+) kB", self._status.read_text())
            self.samples.append((time.monotonic(), 1024 * int(found[1]) if found else 0))
            time.sleep(0.25)

    def most(self, start: float, end: float) -> int:
        return max((size for at, size in self.samples if start <= at <= end), default=0)


@contextmanager
def started(bundle: Path, options: list[str]) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    command = [sys.executable, "-m", "acestep_gguf", "serve", str(bundle), "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("listening on "):
                break
        threading.Thread(target=lambda: sys.stderr.writelines(process.stderr or ()), daemon=True).start()
        try:
            yield line.split()[-1], process
        finally:
            process.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--per-skill", type=int, default=10, help="questions of each kind")
    parser.add_argument("--url", help="of a server that runs already")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("options", nargs="*", help="behind --: options for `serve`")
    arguments = parser.parse_args()
    asked = cases(arguments.bundle, arguments.per_skill, Random(arguments.seed))
    record = Record()
    if arguments.url:
        load(arguments, arguments.url, asked, record, None)
        return
    with started(arguments.bundle, arguments.options) as (url, process):
        memory = Memory(process.pid)
        checks = load(arguments, url, asked, record, memory)
        process.terminate()
        code = process.wait(60)
    checks.append(("exit code after SIGTERM", code, code == 0))
    print("\n| | | holds |\n|---|---|---|")
    for what, figure, holds in checks:
        print(f"| {what} | {figure} | {'yes' if holds else '**no**'} |")
    sys.exit(not all(holds for _, _, holds in checks))


def load(
    arguments: argparse.Namespace, url: str, asked: list[Case], record: Record, memory: Memory | None
) -> list[tuple[str, object, bool]]:
    began = time.monotonic()
    end = began + 60 * arguments.minutes
    rngs = [Random(arguments.seed + number) for number in range(1, arguments.clients + 1)]
    threads = [threading.Thread(target=client, args=(url, asked, end, record, rng)) for rng in rngs]
    if memory is not None:
        threads.append(threading.Thread(target=memory.watch, args=(end,)))
    for thread in threads:
        thread.start()
    while record.counts.total() < WARM_AFTER and time.monotonic() < end:
        time.sleep(0.1)
    warm = time.monotonic()
    for thread in threads:
        thread.join()
    n_answers = record.counts.total()
    print(f"{n_answers} requests of {arguments.clients} clients in {arguments.minutes:g} minutes\n")
    for what, count in sorted(record.counts.items()):
        print(f"{count:6} {what}")
    for right, got in record.wrong[:10]:
        print(f"       {right!r} was expected, {got!r} came")
    times = sorted(record.first_token_s) or [0.0]
    p50, p95 = (times[int(share * (len(times) - 1))] for share in (0.5, 0.95))
    bad = sum(count for what, count in record.counts.items() if "failed" in what or "but" in what)
    checks: list[tuple[str, object, bool]] = [
        ("requests that failed", bad, bad == 0),
        ("answers that are wrong for their pictures", record.counts["wrong"], record.counts["wrong"] == 0),
        ("time to the first token, p50 and p95", f"{p50:.2f} s, {p95:.2f} s", True),
    ]
    if memory is not None:
        early, late = memory.most(warm, min(warm + 30, end)), memory.most(end - 30, end)
        growth = late / early if early else 0.0
        figure = f"{early / 2**20:.1f} MiB, {late / 2**20:.1f} MiB, {growth:.3f}"
        checks.append(("anonymous memory, warm, at the end, growth", figure, growth <= MOST_GROWTH))
    return checks


if __name__ == "__main__":
    main()
