"""Run a bundle over RPC servers, and compare what they granted and took with what was planned.

    python -m scripts.synthetic.bundle --shape 32b /tmp/bundle-32b
    python -m scripts.checks.servers --servers 2 --memory 12GiB --image PICTURE /tmp/bundle-32b -- -c 1024

The servers are processes of this machine. What stands behind ``--`` goes to `plan` and to `run`.
"""

import argparse
import os
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from acestep_gguf.sizes import parse_size
from scripts.bench.measured_run import measured_run, plan
from scripts.checks.played_card import Card, play_card


def most_resident(card: Card) -> int:
    """Bytes of memory that a server's process had at its fullest, its libraries among them."""
    status = Path(f"/proc/{card.process_id}/status").read_text()
    return 1024 * int(re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--memory", required=True, help="of each, such as 12GiB")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each")
    parser.add_argument("--image", type=Path, action="append", default=[])
    parser.add_argument("options", nargs="*", help="behind --: options that plan and run have in common")
    arguments = parser.parse_args()
    memory = parse_size(arguments.memory, "--memory")
    with ExitStack() as stack:
        servers = [
            stack.enter_context(play_card(memory, n_threads=arguments.threads))
            for _ in range(arguments.servers)
        ]
        os.environ |= {"LLAMA_CPP_LIB_PATH": str(servers[0].library.parent), "OMP_WAIT_POLICY": "passive"}
        options = [*arguments.options, "--rpc", ",".join(server.endpoint for server in servers)]
        planned = plan(arguments.bundle, arguments.image, options)
        peaks, answer = measured_run(arguments.bundle, arguments.image, options)
        print("| server | planned | granted | refused | planned in all | resident at most |")
        print("|---|---|---|---|---|---|")
        for number, server in enumerate(servers, 1):
            cells = (
                _numbers(_buffers(planned, number)), _numbers(server.granted()), _numbers(server.refused()),
                _numbers([planned["gpus"][number - 1]["needed"]]), _numbers([most_resident(server)]),
            )  # fmt: skip
            print(f"| {number} | {' | '.join(cells)} |")
    ram, timings = planned["ram"], answer["timings"]
    print(f"\nhere: anonymous {ram['anonymous']:,} planned, {peaks.anonymous:,} taken")
    print(f"{planned['settings']['n_gpu_layers']} layers, {timings}, tokens {answer['usage']}")


def _buffers(planned: dict[str, Any], device: int) -> list[int]:
    """Weights, KV cache and compute buffer, as they are granted."""
    sizes = {part["name"]: part["n_bytes"] for part in planned["parts"] if part["device"] == device}
    sizes.pop("scratch of the server", None)
    later = [sizes.pop(name, 0) for name in ("KV cache", "compute buffer")]
    return [n_bytes for n_bytes in (sum(sizes.values()), *later) if n_bytes]


def _numbers(sizes: list[int]) -> str:
    return " + ".join(f"{size:,}" for size in sizes) or "–"


if __name__ == "__main__":
    main()
