"""Kill a server under load, and see that a conversation goes on after it is started again.

    acestep-gguf convert acestep_gguf/demo demo-bundle -q Q4_K_M
    python -m scripts.checks.server_restart demo-bundle --kills 10

A conversation about a picture has had its first turn when the clients of server_load.py begin, and the
server is killed at a random moment. Started again, over the same cache, it has to know the conversation up to
the end of its picture, give the answer that an undisturbed server gives, and answer others rightly.
"""

import argparse
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from random import Random
from typing import Any

import httpx

from scripts.checks.server_load import MAX_TOKENS, Case, Record, cases, client, started, whole

LOAD_S = 5.0
FIRST, NEXT = "Describe this image in detail", "What colour is the background?"


def answered(http: httpx.Client, messages: list[dict[str, Any]]) -> tuple[str, int]:
    """An answer, and how many tokens of its prompt were known."""
    body = {"messages": messages, "max_tokens": MAX_TOKENS, "temperature": 0}
    response = http.post("/v1/chat/completions", json=body).raise_for_status().json()
    known = response["usage"]["prompt_tokens_details"]["cached_tokens"]
    return response["choices"][0]["message"]["content"], known


def asked(case: Case, text: str) -> dict[str, Any]:
    """A question about the pictures of ``case``."""
    (message,) = case.messages
    return {"role": "user", "content": [*message["content"][:-1], {"type": "text", "text": text}]}


def next_turn(http: httpx.Client, case: Case, first: str) -> tuple[str, int]:
    turns = [asked(case, FIRST), {"role": "assistant", "content": first}, {"role": "user", "content": NEXT}]
    return answered(http, turns)


def killed_under_load(bundle: Path, case: Case, others: list[Case], rng: Random) -> tuple[str, str, int]:
    """The first answer of a conversation; its next one after a kill, and how much of it was known."""
    record = Record()
    with started(bundle, []) as (url, process):
        with httpx.Client(base_url=url, timeout=120) as http:
            first, _ = answered(http, [asked(case, FIRST)])
        until = time.monotonic() + LOAD_S
        rngs = [Random(rng.random()) for _ in range(8)]
        threads = [threading.Thread(target=client, args=(url, others, until, record, one)) for one in rngs]
        for thread in threads:
            thread.start()
        time.sleep(rng.uniform(0.5, LOAD_S - 1))
        process.kill()
        for thread in threads:
            thread.join()
    with started(bundle, []) as (url, _), httpx.Client(base_url=url, timeout=120) as http:
        then, known = next_turn(http, case, first)
        after = Record()
        for other in rng.sample(others, 5):
            body = {"messages": other.messages, "max_tokens": MAX_TOKENS, "temperature": 0}
            whole(http, body, other, after)
        if after.counts["right"] != 5:
            sys.exit(f"wrong answers after the restart: {after.wrong}")
    return first, then, known


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = Random(arguments.seed)
    made = cases(arguments.bundle, 3, rng)
    single = [case for case in made if len(case.messages[0]["content"]) == 2]
    least, n_equal = sys.maxsize, 0
    for number in range(arguments.kills):
        case = single[number % len(single)]
        with tempfile.TemporaryDirectory() as cache:
            os.environ["XDG_CACHE_HOME"] = cache
            first, then, known = killed_under_load(arguments.bundle, case, made, rng)
        with tempfile.TemporaryDirectory() as cache:
            os.environ["XDG_CACHE_HOME"] = cache
            with started(arguments.bundle, []) as (url, _), httpx.Client(base_url=url, timeout=120) as http:
                undisturbed = next_turn(http, case, first)[0]
        least, n_equal = min(least, known), n_equal + (then == undisturbed)
        print(f"kill {number + 1}: {known} tokens known, {then!r}", flush=True)
    print(f"\n{arguments.kills} kills, {n_equal} next turns as undisturbed, at least {least} tokens known")
    sys.exit(not (n_equal == arguments.kills and least > 0))


if __name__ == "__main__":
    main()
