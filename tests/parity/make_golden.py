"""Store what transformers computes, for test_golden.py: ``python -m tests.parity.make_golden [CASE…]``."""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.parity.reference import expected_arrays, internvl_token_counts
from tests.support.fidelity import TINY, write_checkpoint
from tests.support.token_counts import N_SIZES, PUBLISHED, TOKEN_COUNTS, random_sizes

GOLDEN = Path(__file__).parent.parent / "golden"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or ("demo", *TINY, TOKEN_COUNTS):
            arrays: dict[str, Any]
            if name == TOKEN_COUNTS:
                sizes = random_sizes(N_SIZES)
                counts = internvl_token_counts(PUBLISHED.write(Path(folder) / name), sizes)
                arrays = {"counts": np.array(counts, np.int32)}
            else:
                arrays = expected_arrays(name, write_checkpoint(name, Path(folder)))
            np.savez_compressed(GOLDEN / f"{name}.npz", **arrays)


if __name__ == "__main__":
    main()
