"""llama.cpp's samplers: how the next token is chosen from logits."""

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any, Final

from acestep_gguf.errors import DecodeError
from acestep_gguf.llama.backend import Handle, backend
from acestep_gguf.llama.binding import NOT_FINITE, Context, Model, check_finite
from acestep_gguf.llama.library import lib
from acestep_gguf.options import SamplingParams

if TYPE_CHECKING:
    from acestep_gguf.grammar.matcher import Matcher

# Draws below it are those of the most probable token, but where two logits are the same but for rounding; far
# below, logits divided by it are not finite in float32, and llama.cpp draws nonsense from them.
LEAST_TEMPERATURE: Final = 1e-6
PENALTY_LAST_N: Final = 64  # llama.cpp's default window of the repeat penalty


class Sampler(Handle):
    """llama.cpp's sampler chain, in its usual order: penalties, top-k, top-p, min-p, temperature, draw.

    Args:
        model: whose tokens are chosen.
        params: how.
        matcher: lets through what may come next, before anything else is asked; by default everything.

    ``seed`` is what it draws with, llama.cpp's own choice if ``params`` has none; None if it never draws.
    """

    def __init__(self, model: Model, params: SamplingParams, matcher: "Matcher | None" = None) -> None:
        backend()
        super().__init__(lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params()))
        self._model = model
        self._matcher = matcher
        # llama.cpp would first copy all logits: 1 % of the time of a token of a small decoder.
        is_greedy = params.temperature < LEAST_TEMPERATURE
        self.seed: int | None = None
        self._takes_largest = is_greedy and params.repeat_penalty == 1.0
        if params.repeat_penalty != 1.0:
            penalty = (model.n_vocab, PENALTY_LAST_N, params.repeat_penalty, 0.0, 0.0)
            self._add(lib.llama_sampler_init_penalties(*penalty))
        if is_greedy:
            self._add(lib.llama_sampler_init_greedy())
            return
        self._add(lib.llama_sampler_init_top_k(params.top_k))
        self._add(lib.llama_sampler_init_top_p(params.top_p, 1))
        self._add(lib.llama_sampler_init_min_p(params.min_p, 1))
        self._add(lib.llama_sampler_init_temp(params.temperature))
        self._add(lib.llama_sampler_init_dist(0xFFFFFFFF if params.seed in (None, -1) else params.seed))
        self.seed = lib.llama_sampler_get_seed(self.pointer)

    def _free(self, pointer: Any) -> None:
        lib.llama_sampler_free(pointer)

    def _add(self, sampler: Any) -> None:
        lib.llama_sampler_chain_add(self.pointer, sampler)  # the chain owns and frees it

    def accept(self, tokens: Sequence[int]) -> None:
        """Show tokens of the prompt to the repeat penalty."""
        self._model.check_tokens(tokens)
        for token in tokens:
            lib.llama_sampler_accept(self.pointer, token)

    def sample(self, context: Context, index: int = -1) -> int:
        """Choose and accept the next token from the logits of one of the last outputs.

        Where there is a matcher, it changes the logits.

        Raises:
            DecodeError: there are no such logits, they are not finite, or the matcher cannot go on.
        """
        logits = context.logits_view(index)
        if self._matcher is not None:
            check_finite(logits)
            self._matcher.restrict(logits)
        if self._takes_largest:
            token = int(logits.argmax())  # NaN counts as the largest
            if not isfinite(logits[token]):
                raise DecodeError(NOT_FINITE)
        else:
            if self._matcher is None:
                check_finite(logits)
            token = lib.llama_sampler_sample(self.pointer, context.pointer, index)
        if self._matcher is not None:
            self._matcher.accept(token)
        return token
