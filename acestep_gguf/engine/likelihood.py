"""How probable a model finds texts as its answer; for benchmarks that rank choices in this way."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from acestep_gguf.decoding.decoder import Decoder
from acestep_gguf.engine.question import Question
from acestep_gguf.errors import PromptError
from acestep_gguf.llama.backend import StopFlag
from acestep_gguf.prompt.builder import PromptBuilder
from acestep_gguf.prompt.segments import Segment, positions_of, segments_after
from acestep_gguf.vision.encoder import ImageEncoder

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Likelihood:
    """The tokens of a text, and the natural logarithm of the probability of each after those before it."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def sum(self) -> float:
        """Of the whole text."""
        return sum(self.logprobs)

    @property
    def mean(self) -> float:
        """Of a token of it."""
        return self.sum / len(self.logprobs)


class LikelihoodReader:
    """Reads a question once, and after it one text after another.

    A text has the tokens that question and text have together, after as many as the question has alone: so
    does lm-evaluation-harness, from which lmms-eval has it.

    Args:
        prompts: how messages become tokens.
        encoder: of pictures.
        decoder: what it has read of the question is reused.
    """

    def __init__(self, prompts: PromptBuilder, encoder: ImageEncoder, decoder: Decoder) -> None:
        self._prompts = prompts
        self._encoder = encoder
        self._decoder = decoder

    def read(self, question: Question, texts: Sequence[str]) -> tuple[Likelihood, ...]:
        """The likelihood of each of ``texts`` as an answer; ``AceStep.likelihoods`` says what is raised."""
        self._decoder.context.watch(StopFlag())
        prompt = self._prompts.build_parsed(question.turns)
        pictures = self._encoder.prepare_all(prompt.images)
        inputs = [picture.input for picture in pictures]
        segments = prompt.segments(inputs)
        n_asked = sum(map(len, segments))
        answered = [self._prompts.build_parsed(question.turns, text).segments(inputs) for text in texts]
        for text, with_text in zip(texts, answered, strict=True):
            n_positions = sum(map(len, with_text))
            if n_positions <= n_asked:
                raise PromptError(f"{text[:64]!r} has no token of its own: give a text that is not empty.")
            self._decoder.check_fits(n_positions)
        self._decoder.reuse(segments)
        unread = set(segments_after(segments, self._decoder.n_past))
        embeds = {
            picture.input.key: self._encoder.rows(picture) for picture in pictures if picture.input in unread
        }
        self._decoder.prefill(segments, embeds)
        return tuple(self._read(with_text, n_asked) for with_text in answered)

    def _read(self, segments: Sequence[Segment], n_asked: int) -> Likelihood:
        """Of the text that stands behind the ``n_asked`` positions of a question that was read."""
        decoder, context = self._decoder, self._decoder.context
        # The question's last token is read again each time: it gives the logits of the text's first one.
        n_kept = min(decoder.n_reusable(segments, exact=False), n_asked - 1)
        decoder.cut(n_kept)
        tokens = [token for token in positions_of(segments)[n_kept:] if isinstance(token, int)]
        of_text, given = tokens[n_asked - n_kept :], tokens[:-1]
        logprobs: list[float] = []
        most = min(context.n_batch, context.params.n_outputs_max)
        for start in range(0, len(given), most):
            part = given[start : start + most]
            n_outputs = min(len(part), max(0, n_kept + start + len(part) - (n_asked - 1)))
            decoder.append(part, n_outputs=n_outputs)
            logprobs += [
                log_probability(context.logits(output), of_text[len(logprobs) + n_outputs + output])
                for output in range(-n_outputs, 0)
            ]
        return Likelihood(tuple(of_text), tuple(logprobs))


def log_probability(logits: FloatArray, token: int) -> float:
    """Of one token by the softmax of float32 [n_vocab], in double precision."""
    row = logits.astype(np.float64)
    row -= row.max()
    return float(row[token] - np.log(np.exp(row).sum()))
