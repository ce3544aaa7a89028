"""Run a bundle, and compare the memory that it took with what its plan said.

    python -m scripts.synthetic.bundle --shape 32b /tmp/bundle-32b
    python -m scripts.bench.measured_run --image PICTURE /tmp/bundle-32b -- -c 4096

What stands behind ``--`` goes to `plan` and to `run`. Memory is sampled every 20 ms: anonymous memory is the
process's own, mapped is what is resident of files, weights among them, and the system can drop it again.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

N_PREDICT = 32
QUESTION = "What is in this picture?"


class Peaks:
    """The most anonymous and mapped memory of a process, in bytes, while ``watch`` runs."""

    def __init__(self) -> None:
        self.anonymous = self.mapped = 0

    def watch(self, process: "subprocess.Popen[str]") -> None:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            fields = dict(re.findall(r"^(\w+):\s+(\d+) kB$", status.read_text(), re.MULTILINE))
            self.anonymous = max(self.anonymous, 1024 * int(fields.get("RssAnon", 0)))
            self.mapped = max(self.mapped, 1024 * int(fields.get("RssFile", 0)))
            time.sleep(0.02)


def command(verb: str, bundle: Path, options: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "acestep_gguf.cli", verb, str(bundle), "--json", *options]


def measured_run(
    bundle: Path, images: Sequence[Path], options: Sequence[str]
) -> tuple[Peaks, dict[str, Any]]:
    """Peaks of `run`, and the JSON object that it printed."""
    pictures = [part for image in images for part in ("--image", str(image))]
    words = [
        *command("run", bundle, options),
        "--n-predict",
        str(N_PREDICT),
        *pictures,
        QUESTION,
    ]
    with tempfile.TemporaryDirectory() as cache:  # an empty one: nothing is known of the picture
        environment = os.environ | {"XDG_CACHE_HOME": cache}
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        peaks = Peaks()
        watcher = threading.Thread(target=peaks.watch, args=(process,))
        watcher.start()
        out, errors = process.communicate()
        watcher.join()
    if process.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{errors}")
    print(errors, end="", file=sys.stderr)
    return peaks, json.loads(out)


def plan(bundle: Path, images: Sequence[Path], options: Sequence[str]) -> dict[str, Any]:
    """The plan of the same run."""
    words = [*command("plan", bundle, options), "--images", str(len(images))]
    facts: dict[str, Any] = json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout)
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--image", type=Path, action="append", default=[])
    parser.add_argument("options", nargs="*", help="behind --: options that plan and run have in common")
    arguments = parser.parse_args()

    planned = plan(arguments.bundle, arguments.image, arguments.options)["ram"]
    peaks, answer = measured_run(arguments.bundle, arguments.image, arguments.options)
    timings = answer["timings"]
    print("| memory | plan | measured | difference |")
    print("|---|---|---|---|")
    for kind, measured in (("anonymous", peaks.anonymous), ("mapped", peaks.mapped)):
        print(f"| {kind} | {planned[kind]:,} | {measured:,} | {measured / max(1, planned[kind]) - 1:+.1%} |")
    prefill = timings["prefill_tokens"] / timings["prefill_s"]
    decode = timings["decode_tokens"] / max(1e-9, timings["decode_s"])
    print(
        f"\nload {timings['load_s']:.1f} s, pictures {timings['image_s']:.1f} s, "
        f"prefill {prefill:.2f} tokens/s, decode {decode:.2f} tokens/s, {timings['decode_tokens']} tokens"
    )


if __name__ == "__main__":
    main()
