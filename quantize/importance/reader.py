"""A decoder reads samples, and what its weights are multiplied with is summed."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from acestep_gguf.bundle.decoder_info import check_vocabulary
from acestep_gguf.bundle.schema import check_file
from acestep_gguf.errors import ContextOverflowError
from acestep_gguf.llama.binding import Context, Model
from acestep_gguf.llama.eval_callback import ProductWatch
from acestep_gguf.llama.sampler import Sampler
from acestep_gguf.llama.text_chunks import text_chunks
from acestep_gguf.options import SamplingParams
from acestep_gguf.plan.bundle_model import BundleModel
from acestep_gguf.plan.settings import Settings
from acestep_gguf.prompt.builder import PromptBuilder
from acestep_gguf.prompt.messages import parse_messages, user_message
from acestep_gguf.prompt.segments import ImageInput
from acestep_gguf.quantize.importance.samples import Sample
from acestep_gguf.quantize.importance.sums import Kind, SquareSums
from acestep_gguf.quantize.recipes import EMBEDDINGS, OUTPUT
from acestep_gguf.vision.encoder import ImageEncoder

Floats = npt.NDArray[np.float32]

GREEDY: Final = SamplingParams()
# llama-imatrix passes over calls of fewer rows. With samples we do not: answers would never be counted.
LEAST_ROWS: Final = 16


@dataclass(slots=True)
class _Collector:
    """Which products are summed, and to which kind of token their rows belong; None while nothing is.

    ``as_llama_imatrix`` is how a text alone is counted.
    """

    sums: SquareSums
    names: tuple[str, ...]
    kind: Kind | None = None
    as_llama_imatrix: bool = False

    def wants(self, name: str, n_rows: int) -> bool:
        if self.kind is None or (self.as_llama_imatrix and n_rows < LEAST_ROWS):
            return False
        return name.startswith("blk.") or name in self.names

    def take(self, name: str, rows: Floats) -> None:
        assert self.kind is not None  # noqa: S101 (or it was not wanted)
        self.sums.add(self.kind, name, rows, in_float32=self.as_llama_imatrix)


class CalibrationReader:
    """A decoder, loaded to read; a context that frees it.

    All rows give outputs, since llama.cpp computes the last layer only for those that do; so a call has no
    more rows than a micro-batch.

    Args:
        files: of the bundle.
        settings: of the decoder.
        sums: where squares are added.
        process_output: whether the output matrix counts, too; where it is the embeddings' (tied), under
            their name, since one tensor is both.

    Raises:
        BundleError: the decoder is missing or damaged.
        DecodeError: llama.cpp cannot load it.
    """

    def __init__(
        self, files: BundleModel, settings: Settings, sums: SquareSums, *, process_output: bool
    ) -> None:
        bundle = files.bundle
        self._collector = _Collector(sums, (OUTPUT, EMBEDDINGS) if process_output else ())
        watch = ProductWatch(self._collector.wants, self._collector.take)
        check_vocabulary(files.decoder(settings.quant).header, bundle.prompt, bundle.image)
        path = check_file(files.folder, bundle.decoder(settings.quant))
        self._stack = ExitStack()
        self._model = self._stack.enter_context(Model(path, settings.model_params()))
        self._context = self._stack.enter_context(Context(self._model, settings.context_params(), watch))
        self._prompts = PromptBuilder(bundle.prompt, self._model.tokenize, self._model.token_bytes)
        control = bundle.prompt.control_tokens
        self._stop_ids = frozenset(control[token] for token in bundle.prompt.stop_tokens)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def chunks(self, text: str) -> list[list[int]]:
        """``text`` in chunks that fill the context; see ``text_chunks``."""
        return text_chunks(self._model, text, self._context.params.n_ctx)

    def read_chunk(self, tokens: Sequence[int]) -> None:
        """Read a chunk of a text by itself."""
        self._collector.as_llama_imatrix = True
        self._context.keep(0)
        self._read("prompt", tokens)

    def read(self, sample: Sample, encoder: ImageEncoder, *, max_tokens: int) -> None:
        """Read a prompt and its answer; one that is not known is written first, ``max_tokens`` at most.

        Raises:
            ContextOverflowError: they do not fit.
            ImageError, PromptError: a picture or the prompt cannot be used.
            DecodeError: llama.cpp or onnxruntime failed.
        """
        turns = parse_messages([user_message(sample.prompt, sample.images)])
        prompt = self._prompts.build_parsed(turns, sample.answer or "")
        n_answer = max(0, len(prompt.text_tokens) - len(self._prompts.build_parsed(turns).text_tokens))
        pictures = encoder.prepare_all(prompt.images)
        embeds = {picture.input.key: encoder.rows(picture) for picture in pictures}
        segments = prompt.segments([picture.input for picture in pictures])
        self._check_fits(sum(map(len, segments)))
        answer = prompt.text_tokens[len(prompt.text_tokens) - n_answer :]
        self._context.keep(0)
        for segment in segments:
            if isinstance(segment, ImageInput):
                for content in segment.contents(embeds[segment.key]):
                    self._read("picture" if isinstance(content, np.ndarray) else "prompt", content)
            else:
                is_last = segment is segments[-1]
                self._read("prompt", segment[: len(segment) - n_answer] if is_last else segment)
        n_prompt = self._context.n_past()
        if sample.answer is None:
            answer = self._written(max_tokens)
        # Read again, not as it was written: a token at a time is computed in another way.
        self._context.keep(n_prompt)
        self._read("answer", answer)

    def _written(self, max_tokens: int) -> list[int]:
        """The greedy answer, without the token that ends it: a decoder never reads that one."""
        tokens: list[int] = []
        with Sampler(self._model, GREEDY) as sampler:
            while len(tokens) < max_tokens and self._context.n_past() < self._context.params.n_ctx:
                token = sampler.sample(self._context)
                if token in self._stop_ids:
                    break
                tokens.append(token)
                self._context.decode_tokens([token], self._context.n_past(), n_outputs=1)
        return tokens

    def _read(self, kind: Kind, rows: Sequence[int] | Floats) -> None:
        self._collector.kind = kind
        try:
            for start in range(0, len(rows), self._context.n_batch):
                part = rows[start : start + self._context.n_batch]
                n_past = self._context.n_past()
                if isinstance(part, np.ndarray):
                    self._context.decode_embeds(part, n_past, n_outputs=len(part))
                else:
                    self._context.decode_tokens(part, n_past, n_outputs=len(part))
        finally:
            self._collector.kind = None

    def _check_fits(self, n_tokens: int) -> None:
        n_ctx = self._context.params.n_ctx
        if n_tokens >= n_ctx:
            raise ContextOverflowError(
                f"a sample has {n_tokens} tokens, the context holds {n_ctx}: raise n_ctx, or shorten it.",
                settings=["n_ctx"],
            )
