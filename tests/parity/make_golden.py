"""Store what transformers computes, for tests/test_golden.py: ``python -m tests.parity.make_golden``."""

import tempfile
from pathlib import Path

import numpy as np

from tests.fidelity import TINY, write_checkpoint
from tests.parity.reference import expected_arrays

GOLDEN = Path(__file__).parent.parent / "golden"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("demo", *TINY):
            np.savez_compressed(
                GOLDEN / f"{name}.npz", **expected_arrays(name, write_checkpoint(name, Path(folder)))
            )


if __name__ == "__main__":
    main()
