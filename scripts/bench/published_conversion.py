"""Convert a published model's shape, with holes for weights: seconds, and the most memory that it took.

    python -m scripts.bench.published_conversion pixtral-12b smolvlm2-500m-video-instruct

Each gets Q4_K_M and both towers, with calibration. Holes read as zeros, which are converted as any weights;
the outputs are real files (9.7 GB for Pixtral-12B), and are removed again.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from scripts.bench.process_cost import GIB, measured
from tests.convert import test_published_pixtral, test_published_smolvlm

WRITERS: dict[str, Callable[[Path], Path]] = {
    "pixtral-12b": test_published_pixtral.write_folder,
    **{
        name: partial(test_published_smolvlm.write_folder, name=name) for name in test_published_smolvlm.NAMES
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", choices=WRITERS)
    parser.add_argument("--folder", type=Path, help="where checkpoints and bundles go")
    arguments = parser.parse_args()
    for name in arguments.models:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            checkpoint = WRITERS[name](Path(folder) / name)
            command = [sys.executable, "-m", "acestep_gguf.cli", "convert", str(checkpoint)]
            cost = measured([*command, str(Path(folder) / "bundle"), "-q", "Q4_K_M"])
        print(
            f"{name}: {cost.seconds:.0f} s, {cost.anonymous / GIB:.2f} GiB of anonymous memory at most, "
            f"{cost.written / GIB:.2f} GiB written",
            flush=True,
        )


if __name__ == "__main__":
    main()
