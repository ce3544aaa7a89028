"""Store what transformers computes, for test_golden.py: ``python -m tests.parity.make_golden [CASE…]``."""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.parity.reference import expected_arrays
from tests.support.fidelity import TINY, write_checkpoint

GOLDEN = Path(__file__).parent.parent / "golden"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or ("demo", *TINY):
            arrays: dict[str, Any] = expected_arrays(name, write_checkpoint(name, Path(folder)))
            np.savez_compressed(GOLDEN / f"{name}.npz", **arrays)


if __name__ == "__main__":
    main()
