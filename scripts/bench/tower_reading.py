"""What int8 and the types of mmproj files cost a tower in reading, by the size of what is to be read.

python -m scripts.bench.tower_reading --questions 100

Trained models are asked about drawn labels, bar charts and sheets, always the same pictures and with the same
F32 decoder. The mmproj types are simulated: matrices are rounded to the type and back, and our float32 graph
computes with them. llama.cpp also rounds the inputs of F16 and Q8_0 matrices, which this leaves out.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from acestep_gguf import AceStep
from acestep_gguf.bundle.names import MmprojFtype, VisionPrecision
from acestep_gguf.bundle.schema import Bundle, Vision
from acestep_gguf.convert.checkpoint.config import VisionLanguageConfig
from acestep_gguf.convert.checkpoint.weight import DerivedWeight
from acestep_gguf.convert.model import open_model
from acestep_gguf.convert.pipeline import convert_checkpoint
from acestep_gguf.convert.tower.files import plan_tower
from acestep_gguf.convert.tower.mmproj import MATRIX_TYPE, choose_type
from acestep_gguf.cpus import usable_cpus
from acestep_gguf.quantize.ggml import dequantize_rows, quantize_rows
from acestep_gguf.quantize.recipes import TensorShape
from acestep_gguf.quantize.staging import Staging
from acestep_gguf.vision.embeds import centred_cosines
from acestep_gguf.vision.encoder import ImageEncoder
from scripts.demo.questions import HeldOut, Question, questions
from scripts.demo.scenes import (
    BACKGROUNDS,
    SIDE,
    Label,
    draw,
    random_chart,
    random_number,
    random_word,
)
from scripts.demo.sheets import draw_sheet, number_questions, random_sheet

Floats = NDArray[np.float32]
Ask = Callable[[Random, int], HeldOut]

REPOSITORY: Final = Path(__file__).parents[2]
DEMO: Final = REPOSITORY / "acestep_gguf" / "demo"
SHEETS: Final = REPOSITORY / "tests" / "checkpoints" / "sheets"
# Pixels of the tower's 112; the models were trained on fonts of 20 and 24, and on charts of 112.
FONT_SIZES: Final = (15, 16, 18, 20, 24)
CHART_SIDES: Final = (48, 64, 80, 96, 112)
TYPES: Final[tuple[MmprojFtype, ...]] = ("F16", "Q8_0")  # F32 is the float32 tower itself
BEST: Final = "float32"
N_THREADS: Final = 1  # models of this size gain nothing by more


@dataclass(frozen=True)
class Reading:
    """Something to be read, in several sizes in pixels as the tower sees them."""

    checkpoint: Path
    sizes: tuple[int, ...]
    ask: Ask


@dataclass(frozen=True)
class Found:
    """What a tower made of the questions of a size: embeds of each picture, and which answers were right."""

    embeds: list[Floats]
    right: list[bool]


@dataclass(frozen=True, slots=True)
class Rounded(DerivedWeight):
    """A tower's tensor, named ``layer`` in GGUF files, as an mmproj file of the type ``ftype`` holds it."""

    layer: str
    ftype: MmprojFtype

    def read_rows(self, start: int, stop: int) -> Floats:
        rows = self.tensor.read_rows(start, stop)
        qtype = choose_type(TensorShape(self.layer, self.shape), MATRIX_TYPE[self.ftype]).qtype
        blocks = quantize_rows(np.ascontiguousarray(rows, np.float32), qtype)
        if blocks is None:
            raise ValueError(f"{self.layer} cannot be {qtype.name}")
        return dequantize_rows(blocks, qtype)


# ---- what is read ---------------------------------------------------------------------------------------


def word(rng: Random, size: int) -> HeldOut:
    return _label(random_word(rng, True), "words", rng, size)


def number(rng: Random, size: int) -> HeldOut:
    return _label(random_number(rng, True), "numbers", rng, size)


def _label(label: Label, skill: str, rng: Random, size: int) -> HeldOut:
    asked = next(one for one in questions(label, rng) if one.skill == skill)
    return HeldOut(asked, (draw(replace(label, font_size=size), rng)[0],))


def chart(rng: Random, size: int) -> HeldOut:
    """A chart of ``size`` times ``size`` pixels somewhere on a picture of its background."""
    bars = random_chart(rng, True)
    asked = rng.choice([one for one in questions(bars, rng) if one.skill == "bars"])
    picture = Image.new("RGB", (SIDE, SIDE), BACKGROUNDS[bars.background])
    corner = (rng.randint(0, SIDE - size), rng.randint(0, SIDE - size))
    picture.paste(draw(bars, rng, (size, size), oversample=4)[0], corner)
    return HeldOut(asked, (picture,))


def sheet(rng: Random, size: int) -> HeldOut:
    """A number on a sheet of pictures, whose texts all have this size."""
    drawn = random_sheet(rng, held_out=True)
    asked: Question = rng.choice(number_questions(drawn))
    resized = tuple(replace(one, font_size=size) if isinstance(one, Label) else one for one in drawn.pictures)
    return HeldOut(asked, (draw_sheet(replace(drawn, pictures=resized), rng),))


READINGS: Final[Mapping[str, Reading]] = {
    "words": Reading(DEMO, FONT_SIZES, word),
    "numbers": Reading(DEMO, FONT_SIZES, number),
    "bars of charts": Reading(DEMO, CHART_SIDES, chart),
    "numbers on sheets": Reading(SHEETS, FONT_SIZES, sheet),
}


def asked_of(name: str, size: int, count: int) -> list[HeldOut]:
    """The same questions about the same things at every size, drawn anew."""
    return [READINGS[name].ask(Random(f"reading/{name}/{index}"), size) for index in range(count)]


# ---- by which tower -------------------------------------------------------------------------------------


def towers(checkpoint: Path, folder: Path) -> dict[str, tuple[Path, VisionPrecision]]:
    """Bundles with one F32 decoder, and precisions of their towers, by what they stand for."""
    ours = folder / "ours"
    convert_checkpoint(checkpoint, ours, ["F32"])
    found: dict[str, tuple[Path, VisionPrecision]] = {BEST: (ours, "float32")}
    for ftype in TYPES:
        found[f"mmproj {ftype}"] = (_with_rounded_tower(checkpoint, folder / ftype, ftype), "float32")
    return found | {"int8": (ours, "int8")}


def _with_rounded_tower(checkpoint: Path, folder: Path, ftype: MmprojFtype) -> Path:
    bundle = convert_checkpoint(checkpoint, folder, ["F32"], vision=["float32"])
    with open_model(checkpoint, None) as model, Staging(folder) as staging:
        if model.image is None or not isinstance(model.config, VisionLanguageConfig):
            raise ValueError(f"{checkpoint} has no tower")
        tensors = {name: Rounded(tensor, name, ftype) for name, tensor in model.tensors.tower.items()}
        tower = plan_tower(model.config, model.image, tensors, "float32")
        record = tower.write(staging, usable_cpus(), on_spared=lambda *_: None)
        staging.publish()
    replace(bundle, vision=Vision(default="float32", files={"float32": record})).write(folder)
    return folder


class Reader:
    """The model in ``folder`` with its tower in ``precision``; to be closed."""

    def __init__(self, folder: Path, precision: VisionPrecision) -> None:
        self._model = AceStep(folder, vision=precision, cache=False, n_threads=N_THREADS)
        self._encoder = ImageEncoder(folder, Bundle.read(folder), n_threads=N_THREADS, precision=precision)

    def close(self) -> None:
        self._encoder.close()
        self._model.close()

    def read(self, asked: Sequence[HeldOut], best: Found | None = None) -> Found:
        """Embeds and answers; where the embeds are ``best``'s, bit for bit, the answers are, too."""
        embeds = [self._encoder.encode(self._encoder.prepare(one.images[0])).embeds for one in asked]
        if best is not None and all(map(np.array_equal, embeds, best.embeds)):
            return Found(embeds, best.right)
        return Found(embeds, [self._answer(one) == one.question.answer for one in asked])

    def _answer(self, one: HeldOut) -> str:
        return self._model.generate(one.question.text, images=list(one.images)).text.strip()


# ---- the table ------------------------------------------------------------------------------------------


def cell(found: Found, best: Found) -> str:
    """Right answers; of those of ``best``, lost and won; centred cosines to its embeds, mean and least."""
    share = f"{100 * np.mean(found.right):.1f} %"
    if found is best:
        return share
    pairs = list(zip(found.right, best.right, strict=True))
    lost, won = pairs.count((False, True)), pairs.count((True, False))
    centred = np.concatenate([centred_cosines(*pair) for pair in zip(found.embeds, best.embeds, strict=True)])
    return f"{share} (−{lost} +{won}; {centred.mean():.5f}, {centred.min():.4f})"


def together(found: Sequence[Found]) -> Found:
    """All sizes as one."""
    return Found(
        [embeds for one in found for embeds in one.embeds], [right for one in found for right in one.right]
    )


def rows(name: str, readers: Mapping[str, Reader], count: int) -> Iterator[list[str]]:
    """A row of the table for each size, and one for all of them."""
    found: dict[str, list[Found]] = {tower: [] for tower in readers}
    for size in READINGS[name].sizes:
        asked = asked_of(name, size, count)
        best = readers[BEST].read(asked)
        here = {BEST: best} | {
            tower: reader.read(asked, best) for tower, reader in readers.items() if tower != BEST
        }
        for tower, one in here.items():
            found[tower].append(one)
        yield [f"{name}, {size} px", *(cell(one, best) for one in here.values())]
    whole = {tower: together(of_sizes) for tower, of_sizes in found.items()}
    yield [f"{name}, all", *(cell(one, whole[BEST]) for one in whole.values())]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--questions", type=int, default=100, help="of each size")
    parser.add_argument("--reading", action="append", choices=READINGS, help="may repeat; default: all")
    arguments = parser.parse_args()

    heads = ["float32 = mmproj F32", *(f"mmproj {ftype}" for ftype in TYPES), "int8"]
    print(f"| {' | '.join(['what is read', *heads])} |\n|{' --- |' * (len(heads) + 1)}")
    names = arguments.reading or list(READINGS)
    for checkpoint in dict.fromkeys(READINGS[name].checkpoint for name in names):
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            made = towers(checkpoint, Path(folder))
            readers = {name: stack.enter_context(closing(Reader(*where))) for name, where in made.items()}
            for name in names:
                if READINGS[name].checkpoint == checkpoint:
                    for row in rows(name, readers, arguments.questions):
                        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
