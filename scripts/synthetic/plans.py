"""Print what models cost: tokens of a picture, and what fits 8, 16 and 32 GB of RAM, without converting them.

    python -m scripts.synthetic.plans CHECKPOINT...
    python -m scripts.synthetic.plans --comparison CHECKPOINT...

The headers of decoders and an int8 tower are made of each checkpoint, whose weights may be holes. A machine
is taken to have four fifths of its RAM free, and 8 cores. ``--comparison`` adds sizes on disk and a plan for
a card beside 16 GB of RAM. docs/models.md has both tables.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from acestep_gguf.bundle.names import Ftype
from acestep_gguf.errors import MemoryShortageError
from acestep_gguf.options import EngineOptions
from acestep_gguf.plan.bundle_model import BundleModel
from acestep_gguf.plan.machine import Gpu, Machine, this_machine
from acestep_gguf.plan.planner import make_plan
from acestep_gguf.sizes import show_size
from acestep_gguf.vision.tiling import n_positions, tiling_of
from scripts.synthetic.bundle import write_bundle

PHOTO = (640, 480)
GB = 10**9
MACHINES = (8 * GB, 16 * GB, 32 * GB)
CARD = 12 * GB
FREE_SHARE = 0.8
N_CORES = 8


HEADS = {
    "row": "| model | tokens of 640 x 480 | at most | 8 GB | 16 GB | 32 GB |\n|---|---|---|---|---|---|",
    "comparison": "| model | Q4_K_M | Q8_0 | int8 tower | 8 GB | 16 GB | 32 GB | 16 GB, card of 12 GB |\n"
    "|---|---|---|---|---|---|---|---|",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--comparison", action="store_true", help="sizes on disk, and a plan for a card, too")
    parser.add_argument("checkpoints", type=Path, nargs="+")
    arguments = parser.parse_args()
    print(HEADS["comparison" if arguments.comparison else "row"])
    for checkpoint in arguments.checkpoints:
        print((comparison if arguments.comparison else row)(checkpoint), flush=True)


def row(checkpoint: Path) -> str:
    """A line of the first table for the checkpoint in the folder of its name."""
    with made_bundle(checkpoint, ["Q4_K_M"]) as bundle:
        _, image = bundle.bundle.tower()
        tiling = tiling_of(image)
        tokens = [n_positions(tiling, PHOTO), tiling.most()[1]]
        return line(checkpoint.name, *(f"{count:,}" for count in tokens), *fits(bundle))


def comparison(checkpoint: Path) -> str:
    """A line of the second table."""
    with made_bundle(checkpoint, ["Q4_K_M", "Q8_0"]) as bundle:
        tower = bundle.bundle.vision_file("int8")
        sizes = [bundle.bundle.decoder(ftype).bytes for ftype in ("Q4_K_M", "Q8_0")]
        sizes.append(tower.bytes + tower.data.bytes)
        card = fit_card(bundle, with_ram(16 * GB, Gpu(name="card", memory=CARD)))
        return line(checkpoint.name, *map(show_size, sizes), *fits(bundle), card)


def line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


@contextmanager
def made_bundle(checkpoint: Path, ftypes: Sequence[Ftype]) -> Iterator[BundleModel]:
    """A bundle of holes, whose default decoder is the first."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "bundle"
        write_bundle(checkpoint, out, ftypes, ["int8"], name=checkpoint.name, sparse=True, sparse_towers=True)
        yield BundleModel(out)


def fits(bundle: BundleModel) -> Sequence[str]:
    return [fit(bundle, with_ram(ram)) for ram in MACHINES]


def with_ram(ram: int, *gpus: Gpu) -> Machine:
    """A machine of 8 cores."""
    return replace(this_machine(), ram=int(FREE_SHARE * ram), gpus=gpus, n_threads=N_CORES)


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


def fit_card(bundle: BundleModel, where: Machine) -> str:
    """What is on a card, the context, and the memory of the card and of RAM."""
    plan = make_plan(bundle, where, EngineOptions())
    n_gpu_layers = plan.settings.n_gpu_layers
    are_all = n_gpu_layers > bundle.decoder(plan.settings.quant).info.block_count  # the output matrix, too
    layers = f"-ngl {n_gpu_layers}{' (all)' if are_all else ''}"
    used = f"{show_size(plan.memory.gpu(1))} and {show_size(plan.memory.ram)}"
    return f"{layers}, {plan.settings.n_ctx} tokens, {used}"


def tried(bundle: BundleModel) -> Sequence[EngineOptions]:
    _, image = bundle.bundle.tower()
    return [EngineOptions()] if image.tiles is None else [EngineOptions(), EngineOptions(max_tiles=1)]


if __name__ == "__main__":
    main()
