"""Send a server what nobody should, and see that it refuses each in one line, stays alive, takes no memory.

    acestep-gguf convert acestep_gguf/demo demo-bundle -q Q4_K_M
    python -m scripts.checks.server_fuzz demo-bundle --requests 200000

Bodies are valid ones with values of all kinds in places at random, and JSON that is none or nested deeply;
pictures are valid ones with bytes changed, cut out and put in; requests have giant or broken heads, false
lengths and paths, come slowly or break off. Every hundredth request is a valid one, which has to be answered.
"""

import argparse
import base64
import copy
import http.client
import io
import json
import re
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final

from PIL import Image

from scripts.checks.server_load import started

PATHS: Final = ("/v1/chat/completions", "/v1/responses", "/v1/images/preview")
VALID_ONE_IN: Final = 100
MOST_MEMORY_MIB: Final = 400  # beyond what it takes when it is warm
MAX_BODY: Final = 2**20
TIMEOUT_S: Final = 60.0
VALUES: Final[tuple[Any, ...]] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**400),
    *(0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "a", "\0", "\ud800", "\u202e", "<|im_end|>", "<image>", "é" * 1000, "{{ 7 * 7 }}"),
    *("data:image/png;base64,", "data:image/png;base64,AAAA", "file:///etc/passwd", "http://127.0.0.1:1/x"),
    *([], {}, [[]], [None], {"": ""}, {"type": "text"}, {"type": "json_schema"}, {"$ref": "#"}, ["a"] * 2000),
)
NAMES: Final = (
    *("model", "messages", "input", "stream", "n", "stop", "seed", "tools", "logit_bias", "response_format"),
    *("temperature", "max_tokens", "logprobs", "top_logprobs", "text", "include", "image_url", "\0"),
)
METHODS: Final = (b"POST", b"GET", b"PUT", b"X" * 5000, b"\0", b"OPTIONS", b"CONNECT")
TARGETS: Final = (b"/v1/models", b"/" + b"a" * 70_000, b"/%00", b"//", b"/../x", b"*", b"http://x/")
HOSTS: Final = (b"localhost", b"evil.example", b"", b"localhost\0", b"a" * 5000)
HEADERS: Final = (
    *(b"X: " + b"a" * 100_000, b"Origin: http://evil.example", b"\xff: \xff", b"Transfer-Encoding: x"),
    *(b"Authorization: Bearer x", b"Content-Type: text/plain", b"Cookie: a=b; " * 500),
)
SCHEMAS: Final[tuple[Any, ...]] = (
    {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]},
    {"type": "string", "pattern": "(a{1,100}){1,100}"},
    {"type": "array", "items": {"$ref": "#"}},
    {"enum": ["x" * 50] * 500},
    {"type": "integer", "minimum": 0, "maximum": 3},
)

# What only the inside of a server knows: addresses, traces, paths of files.
INSIDE: Final = re.compile(r"0x[0-9a-f]{6}|Traceback|/(usr|tmp|home|root)/|\.py\b")


class Fuzzer:
    """Requests of one thread, and what came of them."""

    def __init__(self, address: tuple[str, int], model: str, rng: Random) -> None:
        self._address = address
        self._model = model
        self._rng = rng
        self._pictures = [self._file(kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")]
        self._connection: http.client.HTTPConnection | None = None
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self._kinds: tuple[tuple[Callable[[], None], int], ...] = (
            (self.body, 50),
            (self.picture, 20),
            (self.text, 15),
            (self.head, 8),
            (self.cut, 6),
            (self.deep, 3),
        )

    def run(self, n_requests: int) -> None:
        kinds, weights = zip(*self._kinds, strict=True)
        for number in range(n_requests):
            try:
                (self.valid if number % VALID_ONE_IN == 0 else self._rng.choices(kinds, weights)[0])()
            except (OSError, http.client.HTTPException) as error:
                self._close()
                self.counts[f"connection: {type(error).__name__}"] += 1

    def valid(self) -> None:
        status, _ = self._post(PATHS[0], json.dumps(self._valid(PATHS[0])).encode())
        if status not in (200, 429):
            self.faults.append(f"a valid request got {status}")

    def body(self) -> None:
        path = self._rng.choice(PATHS)
        body = self._valid(path)
        if self._rng.random() < 0.2:
            schema = copy.deepcopy(self._rng.choice(SCHEMAS))
            body["response_format"] = {"type": "json_schema", "json_schema": {"schema": schema}}
        for _ in range(self._rng.randint(1, 3)):
            self._change(body)
        self._post(path, json.dumps(body).encode(errors="surrogatepass"))

    def picture(self) -> None:
        data = bytearray(self._rng.choice(self._pictures))
        for _ in range(self._rng.randint(1, 8)):
            at = self._rng.randrange(len(data))
            change = self._rng.random()
            if change < 0.6:
                data[at] = self._rng.randrange(256)
            elif change < 0.8:
                del data[at : at + self._rng.randint(1, 50)]
            else:
                data[at:at] = self._rng.randbytes(self._rng.randint(1, 50))
            if not data:
                break
        body = self._valid(PATHS[2])
        body["image_url"] = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        self._post(PATHS[2], json.dumps(body).encode())

    def text(self) -> None:
        data = bytearray(json.dumps(self._valid(PATHS[0])).encode())
        for _ in range(self._rng.randint(1, 5)):
            data[self._rng.randrange(len(data))] = self._rng.randrange(256)
        self._post(self._rng.choice(PATHS), bytes(data))

    def deep(self) -> None:
        depth = self._rng.choice((50, 500, 5000, 100_000))
        opened, closed = self._rng.choice((("[", "]"), ('{"a":', "}")))
        nested = opened * depth + "0" + closed * depth
        place = self._rng.choice(('{"messages":%s}', '{"messages":[],"tools":%s}', "%s"))
        self._post(self._rng.choice(PATHS), (place % nested).encode())

    def head(self) -> None:
        """A head at random, over a connection of its own."""
        length = self._rng.choice(("0", "5", "-1", "abc", "9" * 30, str(MAX_BODY + 1), "5, 6"))
        pick = self._rng.choice
        lines = [
            pick(METHODS) + b" " + pick(TARGETS) + b" HTTP/1.1",
            b"Host: " + pick(HOSTS),
            b"Content-Length: " + length.encode(),
            pick(HEADERS),
            pick(HEADERS),
        ]
        self._raw(b"\r\n".join(lines) + b"\r\n\r\nhello", wait=self._rng.random() < 0.9)

    def cut(self) -> None:
        """A valid request that breaks off."""
        body = json.dumps({**self._valid(PATHS[0]), "stream": self._rng.random() < 0.5}).encode()
        head = f"POST {PATHS[0]} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        whole = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        at = self._rng.choice((len(whole), self._rng.randrange(len(whole))))
        self._raw(whole[:at], wait=False, pause=self._rng.choice((0.0, 0.0, 0.02)))

    def _valid(self, path: str) -> dict[str, Any]:
        data = base64.b64encode(self._rng.choice(self._pictures)).decode()
        url = f"data:image/png;base64,{data}"
        if path == PATHS[2]:
            return {"image_url": url}
        if path == PATHS[1]:
            text = {"type": "input_text", "text": "What?"}
            parts: list[Any] = [{"type": "input_image", "image_url": url}, text]
            asked = [{"role": "user", "content": parts}]
            return {"model": self._model, "input": asked, "max_output_tokens": 1}
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]
        return {"messages": [{"role": "user", "content": parts}], "max_tokens": 1, "stop": "x", "n": 1}

    def _change(self, value: Any) -> None:
        """Put another value into a place at random."""
        while isinstance(value, dict | list) and value:
            keys = [*value] if isinstance(value, dict) else [*range(len(value))]
            key: Any = self._rng.choice(keys)
            if not isinstance(value[key], dict | list) or self._rng.random() < 0.3:
                break
            value = value[key]
        change = self._rng.random()
        if isinstance(value, dict) and change < 0.3:
            value[self._rng.choice(NAMES)] = copy.deepcopy(self._rng.choice(VALUES))
        elif isinstance(value, list) and change < 0.3:
            value.append(copy.deepcopy(self._rng.choice(VALUES)))
        elif value and change < 0.5:
            del value[key]
        elif value:
            value[key] = copy.deepcopy(self._rng.choice(VALUES))

    def _post(self, path: str, body: bytes) -> tuple[int, bytes]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection(*self._address, timeout=TIMEOUT_S)
        self._connection.request(
            "POST", path, body, {"Content-Type": "application/json", "Host": "localhost"}
        )
        response = self._connection.getresponse()
        data = response.read()
        if response.will_close:
            self._close()
        self._judge(response.status, data, body)
        return response.status, data

    def _judge(self, status: int, data: bytes, body: bytes) -> None:
        self.counts[str(status)] += 1
        if status >= 500:
            self.faults.append(f"{status} {data[:200]!r} for {body[:2000]!r}")
        elif status >= 400:
            try:
                message = json.loads(data)["error"]["message"]
            except (ValueError, KeyError, TypeError):
                self.faults.append(f"{status} is no error object: {data[:200]!r} for {body[:500]!r}")
                return
            if not message or "\n" in message or len(message) > 1000 or INSIDE.search(message):
                self.faults.append(f"{status} {message[:300]!r} for {body[:500]!r}")

    def _raw(self, data: bytes, *, wait: bool, pause: float = 0.0) -> None:
        with socket.create_connection(self._address, timeout=TIMEOUT_S) as connection:
            connection.sendall(data)
            time.sleep(pause)
            if not wait:
                self.counts["broke off"] += 1
                return
            connection.shutdown(socket.SHUT_WR)
            status = connection.recv(65536).partition(b" ")[2][:3].decode()
            self.counts[f"raw: {status or 'closed'}"] += 1
            if status >= "500":
                self.faults.append(f"raw {status} for {data[:300]!r}")

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _file(self, kind: str) -> bytes:
        image = Image.linear_gradient("L").rotate(self._rng.randrange(360)).resize((56, 40)).convert("RGB")
        file = io.BytesIO()
        image.save(file, kind)
        return file.getvalue()


def anonymous_mib(pid: int) -> float:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    options = ["--max-body", f"{MAX_BODY}B", "--no-cache", "--max-tokens", "4"]
    with started(arguments.bundle, options) as (url, process):
        host, _, port = url.removeprefix("http://").partition(":")
        fuzzers = [
            Fuzzer((host, int(port)), arguments.bundle.resolve().name, Random(arguments.seed + number))
            for number in range(arguments.threads)
        ]
        fuzzers[0].run(50)
        warm = most = anonymous_mib(process.pid)
        each = arguments.requests // arguments.threads
        threads = [threading.Thread(target=one.run, args=(each,)) for one in fuzzers]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) and process.poll() is None:
            most = max(most, anonymous_mib(process.pid))
            time.sleep(0.2)
        seconds = time.monotonic() - began
        is_alive = process.poll() is None
        last = Fuzzer((host, int(port)), arguments.bundle.resolve().name, Random(0))
        if is_alive:
            last.run(1)
        process.terminate()
        code = process.wait(60)
    counts = sum((one.counts for one in fuzzers), Counter[str]())
    faults = [fault for one in (*fuzzers, last) for fault in one.faults]
    if counts.total() < arguments.requests // arguments.threads * arguments.threads:
        faults.append("not all requests were sent")
    print(f"{counts.total()} requests in {seconds:.0f} s\n")
    for what, count in sorted(counts.items()):
        print(f"{count:8} {what}")
    for fault in faults[:20]:
        print(f"FAULT {fault}")
    checks = [
        ("faults", len(faults), not faults),
        ("alive at the end", is_alive, is_alive),
        (
            "anonymous memory, warm and at most",
            f"{warm:.0f} MiB, {most:.0f} MiB",
            most - warm <= MOST_MEMORY_MIB,
        ),
        ("exit code after SIGTERM", code, code == 0),
    ]
    print("\n| | | holds |\n|---|---|---|")
    for what, figure, holds in checks:
        print(f"| {what} | {figure} | {'yes' if holds else '**no**'} |")
    sys.exit(not all(holds for _, _, holds in checks))


if __name__ == "__main__":
    main()
