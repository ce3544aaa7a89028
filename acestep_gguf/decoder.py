"""Reading a prompt (prefill) and writing an answer (decode), token by token, over one llama.cpp context."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from acestep_gguf.errors import ContextOverflowError
from acestep_gguf.llama import Context, Sampler

FloatArray = npt.NDArray[np.float32]

# What the decoder reads: token ids, or the embeds of one image, float32 [n, n_embd].
Input = Sequence[int] | FloatArray


class Decoder:
    """A context and how far it has been filled: positions 0 to ``n_past`` - 1 are computed."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.n_past = 0

    @property
    def n_ctx(self) -> int:
        """Positions that the context holds."""
        return self._context.params.n_ctx

    def check_fits(self, n_prompt: int) -> None:
        """Refuse a prompt of ``n_prompt`` tokens that leaves no room for an answer.

        Raises:
            ContextOverflowError: it does not.
        """
        if n_prompt >= self.n_ctx:
            most = self._context.model.n_ctx_train
            larger = f", or raise --ctx-size (n_ctx) up to {most}" if self.n_ctx < most else ""
            raise ContextOverflowError(
                f"the prompt has {n_prompt} tokens, the context holds {self.n_ctx}: "
                f"ask with fewer pictures or words{larger}."
            )

    def reset(self) -> None:
        """Forget everything."""
        self._context.keep(0)
        self.n_past = 0

    def prefill(self, inputs: Sequence[Input]) -> None:
        """Compute ``inputs`` from ``n_past`` on; the last position gives logits.

        A call of llama.cpp never spans the end of an image, and images are never cut at another place than
        every ``n_batch`` positions, so that a prompt gives the same logits however its parts come about.

        Raises:
            ContextOverflowError: they do not fit.
            DecodeError: llama.cpp failed.
        """
        self.check_fits(self.n_past + sum(map(len, inputs)))
        for index, item in enumerate(inputs):
            for start in range(0, len(item), self._context.n_batch):
                chunk = item[start : start + self._context.n_batch]
                last = index == len(inputs) - 1 and start + len(chunk) == len(item)
                self._compute(chunk, n_outputs=int(last))

    def tokens(self, sampler: Sampler) -> Iterator[int]:
        """Tokens of the answer as they are chosen, until the context is full; each is computed when the next
        one is asked for.

        Raises:
            DecodeError: llama.cpp failed.
        """
        while True:
            token = sampler.sample(self._context)
            yield token
            if self.n_past == self.n_ctx:
                return
            self._compute([token], n_outputs=1)

    def _compute(self, chunk: Input, n_outputs: int) -> None:
        if isinstance(chunk, np.ndarray):
            self._context.decode_embeds(chunk, self.n_past, n_outputs=n_outputs)
        else:
            self._context.decode_tokens(chunk, self.n_past, n_outputs=n_outputs)
        self.n_past += len(chunk)
