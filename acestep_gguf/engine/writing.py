"""An answer while it is written: tokens come in, text goes out, until something ends it."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from acestep_gguf.answer import Answer, FinishReason, Timings, Usage
from acestep_gguf.bundle.schema import PromptSpec
from acestep_gguf.engine.turns import Stopwatch
from acestep_gguf.llama.binding import Model
from acestep_gguf.options import AnswerOptions
from acestep_gguf.prompt.builder import Prompt
from acestep_gguf.prompt.segments import ImageInput
from acestep_gguf.prompt.text_stream import TextStream

if TYPE_CHECKING:
    from acestep_gguf.grammar.matcher import Matcher, Vocabulary


class Spelling:
    """How the tokens that a model writes become text, and which of them may come next.

    Args:
        spec: what bundle.json says of prompts and answers.
        model: the decoder's vocabulary.
    """

    def __init__(self, spec: PromptSpec, model: Model) -> None:
        self.token_bytes = model.token_bytes
        self.stop_tokens = frozenset(spec.control_tokens[token] for token in spec.stop_tokens)
        self.strip_space = spec.space_prefix != "never"
        self._model = model

    def matcher(self, options: AnswerOptions) -> "Matcher | None":
        """What follows the answer's grammar, if it has one."""
        if options.constraint is None:
            return None
        from acestep_gguf.grammar.matcher import Matcher  # noqa: PLC0415 (most answers need none)

        return Matcher(self._vocabulary, options.constraint)

    @cached_property
    def _vocabulary(self) -> "Vocabulary":
        from acestep_gguf.grammar.matcher import Vocabulary  # noqa: PLC0415 (as above)

        tokens = [self._model.token_bytes(token) for token in range(self._model.n_vocab)]
        return Vocabulary(tokens, sorted(self.stop_tokens), self._model.tokenize)


class Writing:
    """The tokens and the text of one answer so far, and how long each part of it took.

    Args:
        prompt: what it answers.
        pictures: of the prompt.
        options: when it ends.
        spelling: of its tokens.
        encoding: time spent on the pictures so far.
    """

    def __init__(
        self,
        prompt: Prompt,
        pictures: Sequence[ImageInput],
        options: AnswerOptions,
        spelling: Spelling,
        *,
        encoding: Stopwatch | None = None,
    ) -> None:
        self.options = options
        self.n_image_tokens = sum(map(len, pictures))
        self.n_prompt = len(prompt.text_tokens) + self.n_image_tokens
        self.n_cached = 0  # positions of the prompt that were computed before
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = None  # None while it goes on
        self.seed: int | None = None  # of what draws its tokens
        self.encoding = encoding or Stopwatch()
        self.prefilling, self.decoding = Stopwatch(), Stopwatch()
        self._spelling = spelling
        # A grammar says itself what an answer begins with.
        strip_space = spelling.strip_space and options.constraint is None
        self._text = TextStream(options.stop, strip_space=strip_space)

    def take(self, token: int) -> str:
        """Add the next token; the text that is certain now."""
        if token in self._spelling.stop_tokens:
            return self.end("stop")
        self.tokens.append(token)
        piece = self._text.feed(self._spelling.token_bytes(token))
        if self._text.stopped:
            self.finish_reason = "stop"
        elif len(self.tokens) == self.options.max_tokens:
            piece += self.end("length")
        return piece

    def end(self, reason: FinishReason) -> str:
        """End it, unless it has ended; the text that was held back."""
        if self.finish_reason is not None:
            return ""
        self.finish_reason = reason
        return self._text.finish()

    def answer(
        self, n_past: int, *, load_s: float = 0.0, drafted_tokens: int = 0, accepted_tokens: int = 0
    ) -> Answer:
        """The answer after ``n_past`` positions were computed; cancelled, if nothing has ended it."""
        return Answer(
            text=self._text.so_far,
            tokens=tuple(self.tokens),
            finish_reason=self.finish_reason or "cancelled",
            seed=self.seed,
            usage=Usage(
                prompt_tokens=self.n_prompt,
                image_tokens=self.n_image_tokens,
                cached_tokens=self.n_cached,
                completion_tokens=len(self.tokens),
                drafted_tokens=drafted_tokens,
                accepted_tokens=accepted_tokens,
            ),
            timings=Timings(
                load_s=load_s,
                image_s=self.encoding.seconds,
                prefill_s=self.prefilling.seconds,
                decode_s=self.decoding.seconds,
                prefill_tokens=max(min(n_past, self.n_prompt) - self.n_cached, 0),
                decode_tokens=max(n_past - self.n_prompt, 0),
            ),
        )
