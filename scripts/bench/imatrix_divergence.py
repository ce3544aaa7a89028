"""What an imatrix saves of the demo, by ftype: KL divergence on pictures that calibration never saw.

python -m scripts.bench.imatrix_divergence acestep_gguf/demo
python -m scripts.bench.imatrix_divergence acestep_gguf/demo -q Q4_K_M --per-skill 100
python -m scripts.bench.imatrix_divergence acestep_gguf/demo -q Q4_K_M --uneven

Questions of the demo's kinds about drawn pictures: those for calibration from another seed, without the
things that are kept for tests. The reference is the F32 decoder. Every decoder is given the picture, the
question and the reference's answer so far; the divergence is over the tokens of that answer, in nats a token.
Few tokens make up most of it, so means are given with what drawing the questions again would make of them.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from typing import Self

import gguf
import numpy as np
import numpy.typing as npt

from acestep_gguf.bundle.names import Ftype, ftype_from
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.llama.binding import Context, Model
from acestep_gguf.llama.params import ContextParams
from acestep_gguf.llama.sampler import Sampler
from acestep_gguf.options import EngineOptions, SamplingParams
from acestep_gguf.prompt.builder import PromptBuilder
from acestep_gguf.prompt.messages import user_message
from acestep_gguf.prompt.segments import ImageInput, Segment
from acestep_gguf.quantize.importance.run import ImatrixOptions, TextFile, make_imatrix
from acestep_gguf.quantize.importance.samples import Sample
from acestep_gguf.quantize.importance.sums import GROUPS
from acestep_gguf.quantize.requantize import quantize_gguf
from acestep_gguf.vision.encoder import ImageEncoder
from scripts.demo.questions import SKILLS, HeldOut, calibration_questions, corpus, held_out_questions

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

FTYPES = ("Q2_K", "Q3_K_M", "IQ4_XS", "Q4_K_M", "Q5_K_M", "Q8_0")
SCALED = {"attn_norm": ("attn_q", "attn_k", "attn_v"), "ffn_norm": ("ffn_gate", "ffn_up")}
TEXT_LINES = 1500
N_CTX = 1024
MAX_TOKENS = 96


@dataclass(frozen=True)
class Asked:
    """A question as a decoder reads it, and the tokens of the reference's answer."""

    segments: list[Segment]
    embeds: dict[bytes, Floats]
    answer: list[int]


class Judge:
    """Asks decoders the same questions, and compares what they expect with what the reference does."""

    def __init__(self, folder: Path, reference: Path, questions: Sequence[HeldOut]) -> None:
        bundle = Bundle.read(folder)
        encoder = ImageEncoder(folder, bundle, n_threads=1, precision="float32")
        control = bundle.prompt.control_tokens
        stop = {control[token] for token in bundle.prompt.stop_tokens}
        self.asked: list[Asked] = []
        self.expected: list[Doubles] = []
        with opened(reference) as context:
            prompts = PromptBuilder(bundle.prompt, context.model.tokenize, context.model.token_bytes)
            for one in questions:
                prompt = prompts.build([user_message(one.question.text, one.images)])
                pictures = encoder.prepare_all(prompt.images)
                embeds = {picture.input.key: encoder.rows(picture) for picture in pictures}
                segments = prompt.segments([picture.input for picture in pictures])
                read(context, segments, embeds)
                answer = write(context, stop)
                self.asked.append(Asked(segments, embeds, answer))
            self.expected = [log_probabilities(logits(context, one)) for one in self.asked]

    def divergences(self, decoder: Path) -> list[Doubles]:
        """KL divergence of each token, for each question float64 [n_tokens]."""
        found = []
        with opened(decoder) as context:
            for one, p in zip(self.asked, self.expected, strict=True):
                q = log_probabilities(logits(context, one))
                found.append(np.maximum(0, np.sum(np.exp(p) * (p - q), axis=1)))
        return found


@dataclass(frozen=True)
class Figure:
    """Mean and 99th percentile over all tokens; the mean in terms of that without an imatrix, and where 90 %
    of such ratios lie when the questions are drawn again (bootstrap).
    """

    mean: float
    p99: float
    ratio: float
    least: float
    most: float

    @classmethod
    def of(cls, found: Sequence[Doubles], plain: Sequence[Doubles]) -> Self:
        sums, plain_sums = (np.array([one.sum() for one in each]) for each in (found, plain))
        drawn = np.random.default_rng(0).integers(0, len(sums), (1000, len(sums)))
        ratios = sums[drawn].sum(axis=1) / plain_sums[drawn].sum(axis=1)
        tokens = np.concatenate(found)
        least, most = np.percentile(ratios, [5, 95])
        return cls(
            mean=float(tokens.mean()),
            p99=float(np.percentile(tokens, 99)),
            ratio=float(sums.sum() / plain_sums.sum()),
            least=float(least),
            most=float(most),
        )

    @property
    def absolute(self) -> str:
        return f"{1e3 * self.mean:.3f} ({1e3 * self.p99:.1f})"

    def __str__(self) -> str:
        return f"{self.absolute} {self.ratio:.2f} [{self.least:.2f}, {self.most:.2f}]"


@contextmanager
def opened(decoder: Path) -> Iterator[Context]:
    params = ContextParams(n_ctx=N_CTX, n_outputs_max=MAX_TOKENS)  # one thread: the decoder is small
    with Model(decoder) as model, Context(model, params) as context:
        yield context


def read(context: Context, segments: Sequence[Segment], embeds: dict[bytes, Floats]) -> None:
    context.keep(0)
    for segment in segments:
        if isinstance(segment, ImageInput):
            context.decode_embeds(embeds[segment.key], context.n_past(), n_outputs=1)
        else:
            context.decode_tokens(segment, context.n_past(), n_outputs=1)


def write(context: Context, stop: set[int]) -> list[int]:
    """A greedy answer with the token that ends it."""
    answer: list[int] = []
    with Sampler(context.model, SamplingParams()) as sampler:
        while len(answer) < MAX_TOKENS:
            answer.append(sampler.sample(context))
            if answer[-1] in stop:
                break
            context.decode_tokens([answer[-1]], context.n_past(), n_outputs=1)
    return answer


def logits(context: Context, one: Asked) -> Floats:
    """What is expected in the place of each token of the answer."""
    read(context, one.segments, one.embeds)
    rows = [context.logits()]
    if given := one.answer[:-1]:
        context.decode_tokens(given, context.n_past(), n_outputs=len(given))
        rows += [context.logits(index) for index in range(-len(given), 0)]
    return np.stack(rows)


def log_probabilities(logits: Floats) -> Doubles:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def make_uneven(decoder: Path) -> None:
    """Make the inputs of most matrices uneven: scale what norms give, column by column, and the weights back.

    The decoder computes the same; its columns are then as different from each other as those of large models.
    """
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(decoder, "r+").tensors}
    rng = np.random.default_rng(0)
    for layer in count():
        for norm, names in SCALED.items():
            if (weights := tensors.get(f"blk.{layer}.{norm}.weight")) is None:
                return
            scale = np.exp(rng.standard_normal(len(weights))).astype(np.float32)
            weights *= scale
            for name in names:
                matrix = tensors[f"blk.{layer}.{name}.weight"]
                matrix /= scale


def make_all(bundle: Path, folder: Path, per_skill: int) -> dict[str, Path | None]:
    """An imatrix of each kind, by its name in the table."""
    samples = []
    for skill in SKILLS:
        for number, one in enumerate(calibration_questions(skill, per_skill)):
            paths = [folder / f"{skill}-{number}-{place}.png" for place in range(len(one.images))]
            for path, image in zip(paths, one.images, strict=True):
                image.save(path)
            samples.append(Sample(tuple(paths), one.question.text))
    text = folder / "text.txt"
    text.write_text("\n".join(islice(corpus(), TEXT_LINES)))
    made: dict[str, Path | None] = {"none": None, "text file": folder / "text_file.gguf"}
    engine = EngineOptions(n_threads=1)
    print(make_imatrix(bundle, folder / "text_file.gguf", TextFile(text), engine=engine))
    for weighting in GROUPS:
        options = ImatrixOptions(weighting=weighting)
        print(make_imatrix(bundle, folder / "out.gguf", samples, options, engine=engine))
        path = folder / f"{weighting}.gguf"
        made[weighting] = (folder / "out.gguf").rename(path)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("-q", "--quant", action="append", help="ftype; may repeat")
    parser.add_argument("--per-skill", type=int, default=30, help="held-out questions of each kind")
    parser.add_argument("--calibration", type=int, default=30, help="calibration questions of each kind")
    parser.add_argument("--uneven", action="store_true", help="inputs uneven, as of large models")
    parser.add_argument("--json", type=Path, help="file for all figures")
    arguments = parser.parse_args()
    ftypes: list[Ftype] = [ftype_from(name) for name in arguments.quant or FTYPES]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = folder / "bundle"
        made = convert_checkpoint(arguments.checkpoint, bundle, ["F32"], vision=["float32"])
        reference = bundle / made.decoder().file
        if arguments.uneven:
            make_uneven(reference)
        matrices = make_all(bundle, folder, arguments.calibration)
        questions = [one for skill in SKILLS for one in held_out_questions(skill, arguments.per_skill)]
        judge = Judge(bundle, reference, questions)
        n_pictures = sum(len(one.images) for one in questions)
        print(f"{n_pictures} pictures, {sum(len(one.answer) for one in judge.asked)} tokens of answers\n")
        print(f"| ftype | {' | '.join(matrices)} |\n|---|{'---|' * len(matrices)}")
        figures = {}
        for ftype in ftypes:
            plain: list[Doubles] = []
            cells = []
            for kind, imatrix in matrices.items():
                quantize_gguf(reference, folder / "decoder.gguf", ftype, imatrix=imatrix)
                found = judge.divergences(folder / "decoder.gguf")
                plain = plain or found
                figure = Figure.of(found, plain)
                figures[f"{ftype} {kind}"] = asdict(figure)
                cells.append(str(figure) if found is not plain else figure.absolute)
            print(f"| {ftype} | {' | '.join(cells)} |", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
