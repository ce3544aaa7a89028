"""Waits for our first token about one picture after another, in one process and without the cache.

python -m scripts.bench.our_first_tokens --prefill int8 BUNDLE QUESTION PICTURE...
"""

import argparse
import json
import time
from pathlib import Path

from acestep_gguf import AceStep


def main() -> None:
    """A line of standard output for each picture: seconds, and what of them went into what."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prefill", choices=("int8", "off"), required=True)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("question")
    parser.add_argument("pictures", type=Path, nargs="+")
    arguments = parser.parse_args()
    with AceStep(arguments.bundle, prefill=arguments.prefill) as model:
        for path in arguments.pictures:
            began = time.perf_counter()
            answer = model.generate(arguments.question, [path], max_tokens=1)
            figures = {
                "seconds": time.perf_counter() - began,
                "prefill_s": answer.timings.prefill_s,
                "prompt_tokens": answer.usage.prompt_tokens,
            }
            print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
