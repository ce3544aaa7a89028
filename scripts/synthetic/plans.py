"""Print what models cost: tokens of a picture, and what fits 8, 16 and 32 GB of RAM, without converting them.

    python -m scripts.synthetic.plans CHECKPOINT...

The headers of a Q4_K_M decoder and an int8 tower are made of each checkpoint, whose weights may be holes. A
machine is taken to have four fifths of its RAM free, and 8 cores. docs/models.md has the table.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from acestep_gguf.errors import MemoryShortageError
from acestep_gguf.options import EngineOptions
from acestep_gguf.plan.bundle_model import BundleModel
from acestep_gguf.plan.machine import Machine, this_machine
from acestep_gguf.plan.planner import make_plan
from acestep_gguf.sizes import show_size
from acestep_gguf.vision.tiling import n_positions, tiling_of
from scripts.synthetic.bundle import write_bundle

PHOTO = (640, 480)
GB = 10**9
MACHINES = (8 * GB, 16 * GB, 32 * GB)
FREE_SHARE = 0.8
N_CORES = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoints", type=Path, nargs="+")
    arguments = parser.parse_args()
    print("| model | tokens of 640 x 480 | at most | 8 GB | 16 GB | 32 GB |\n|---|---|---|---|---|---|")
    for checkpoint in arguments.checkpoints:
        print(row(checkpoint), flush=True)


def row(checkpoint: Path) -> str:
    """A line of the table for the checkpoint in the folder of its name."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "bundle"
        write_bundle(
            checkpoint, out, ["Q4_K_M"], ["int8"], name=checkpoint.name, sparse=True, sparse_towers=True
        )
        bundle = BundleModel(out)
        _, image = bundle.bundle.tower()
        tiling = tiling_of(image)
        tokens = [n_positions(tiling, PHOTO), tiling.most()[1]]
        fits = [fit(bundle, replace(machine(), ram=int(FREE_SHARE * ram))) for ram in MACHINES]
        return "| " + " | ".join([checkpoint.name, *(f"{count:,}" for count in tokens), *fits]) + " |"


def machine() -> Machine:
    """Of 8 cores, without a GPU."""
    return replace(this_machine(), gpus=(), n_threads=N_CORES)


def fit(bundle: BundleModel, where: Machine) -> str:
    """The context and the memory of a plan, with fewer tiles where that is what makes it fit."""
    for options in tried(bundle):
        try:
            plan = make_plan(bundle, where, options)
        except MemoryShortageError:
            continue
        fewer = "" if options.max_tiles is None else ", one tile"
        return f"{plan.settings.n_ctx} tokens, {show_size(plan.memory.ram)}{fewer}"
    return "does not fit"


def tried(bundle: BundleModel) -> Sequence[EngineOptions]:
    _, image = bundle.bundle.tower()
    return [EngineOptions()] if image.tiles is None else [EngineOptions(), EngineOptions(max_tiles=1)]


if __name__ == "__main__":
    main()
