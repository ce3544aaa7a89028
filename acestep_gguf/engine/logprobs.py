"""How probable a decoder found the tokens that it wrote, and others in their places."""

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from acestep_gguf.answer import RankedToken, TokenLogprob

FloatArray = npt.NDArray[np.float32]

MOST_TOP_LOGPROBS: Final = 20


class Logprobs:
    """Log probabilities of what may come next, before a grammar or a temperature changes them.

    Args:
        logits: float32 [n_vocab]; looked at now, since a sampler may change them.
        n_top: how many of the most probable tokens to name.
        token_bytes: what a token spells.
    """

    def __init__(self, logits: FloatArray, n_top: int, token_bytes: Callable[[int], bytes]) -> None:
        largest = logits.max()
        self._log_total = float(largest) + float(np.log(np.exp(logits - largest, dtype=np.float64).sum()))
        self._token_bytes = token_bytes
        first = np.argpartition(-logits, n_top)[:n_top] if n_top else np.empty(0, np.intp)
        ranked = first[np.argsort(-logits[first], kind="stable")]
        self._top = tuple(self._token(int(token), float(logits[token])) for token in ranked)

    def of(self, token: int, logit: float) -> TokenLogprob:
        """Of the token that was chosen."""
        return TokenLogprob(chosen=self._token(token, logit), top=self._top)

    def _token(self, token: int, logit: float) -> RankedToken:
        return RankedToken(token=token, bytes=self._token_bytes(token), logprob=logit - self._log_total)
