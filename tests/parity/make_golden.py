"""Store what transformers computes, for tests without it: ``python -m tests.parity.make_golden [CASE…]``."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from acestep_gguf.quality.reference import read_processor
from tests.parity.reference import expected_arrays, expected_counts
from tests.support.fidelity import TINY, write_checkpoint
from tests.support.published_tiles import CHECKPOINTS, picture_sizes

GOLDEN = Path(__file__).parent.parent / "golden"
TOKEN_COUNTS = "token_counts"
N_COUNTS = 200


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or ("demo", *TINY, TOKEN_COUNTS):
            if name == TOKEN_COUNTS:
                _write_token_counts(Path(folder))
                continue
            arrays: dict[str, Any] = expected_arrays(name, write_checkpoint(name, Path(folder)))
            np.savez_compressed(GOLDEN / f"{name}.npz", **arrays)


def _write_token_counts(folder: Path) -> None:
    sizes = picture_sizes(N_COUNTS)
    counts = {
        name: expected_counts(read_processor(checkpoint.write(folder / name)), sizes)
        for name, checkpoint in CHECKPOINTS.items()
    }
    (GOLDEN / f"{TOKEN_COUNTS}.json").write_text(json.dumps(counts) + "\n")


if __name__ == "__main__":
    main()
