"""From what a request asks to the chunks of its answers, whichever API it came by."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import replace
from time import monotonic
from typing import Any, Final, ParamSpec, TypeVar

from acestep_gguf.answer import Answer, FinishReason, Timings, TokenLogprob
from acestep_gguf.engine.engine import AceStep
from acestep_gguf.engine.question import Question
from acestep_gguf.errors import AceStepError, UsageError
from acestep_gguf.options import AnswerOptions
from acestep_gguf.server.errors import ApiError, api_error
from acestep_gguf.server.loaded_models import Models
from acestep_gguf.server.model_thread import Numbered
from acestep_gguf.server.pictures import with_pictures
from acestep_gguf.server.request_models import AnswerRequest
from acestep_gguf.server.settings import ServerSettings

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# OpenAI's names. An answer that was cut at its deadline is one that is not whole.
FINISH_REASONS: Final[Mapping[FinishReason, str]] = {
    "stop": "stop",
    "length": "length",
    "cancelled": "length",
}

LEAST_LOGPROB: Final = -9999.0  # OpenAI's, for what cannot be


class Answering:
    """Answers what requests ask; belongs to the event loop."""

    def __init__(self, models: Models, settings: ServerSettings) -> None:
        self.models = models
        self.settings = settings
        self._opening = asyncio.Lock()  # one picture at a time is opened, since that takes memory

    async def chunks(self, name: str, request: AnswerRequest) -> AsyncGenerator[Numbered, None]:
        """Chunks of the answers, each with the number of its answer.

        Raises:
            ApiError: it cannot be answered.
        """
        began = monotonic()
        async with self.models.lend(name) as thread:
            questions = await self.in_thread(self._questions, request, await thread.model())
            timeout_s = max(0.0, self.settings.timeout_s - (monotonic() - began))
            chunks = thread.ask(questions, request.n_logprobs, timeout_s=timeout_s)
            try:
                is_first = True
                async for number, chunk in chunks:
                    if is_first:
                        self.models.metrics.first_token_s.observe(monotonic() - began)
                        is_first = False
                    if chunk.answer is not None:
                        _check_was_begun(chunk.answer)
                    yield number, chunk
            finally:
                await chunks.aclose()

    async def in_thread(
        self, work: Callable[Arguments, Result], *arguments: Arguments.args, **named: Arguments.kwargs
    ) -> Result:
        """What a function returns that opens pictures or makes grammars; its errors as ApiErrors."""
        async with self._opening:
            try:
                return await asyncio.to_thread(work, *arguments, **named)
            except AceStepError as error:
                raise api_error(error) from error

    def _questions(self, request: AnswerRequest, model: AceStep) -> list[Question]:
        """A question for each answer that is wanted."""
        try:
            options = AnswerOptions(exact=self.settings.exact, **self._bounded(request.options))
        except UsageError as error:
            raise _bad_option(error) from error
        messages = with_pictures(request.messages, model, self.settings)
        return [Question(messages, options=_of_choice(options, number)) for number in range(request.n)]

    def _bounded(self, options: Mapping[str, Any]) -> dict[str, Any]:
        most = self.settings.max_answer_tokens
        return {**options, "max_tokens": min(options.get("max_tokens", most), most)}


def _of_choice(options: AnswerOptions, number: int) -> AnswerOptions:
    """Each answer is drawn by itself, also where a seed makes all of them repeat."""
    return options if options.seed is None else replace(options, seed=(options.seed + number) % (2**32 - 1))


def _bad_option(error: UsageError) -> ApiError:
    param = "response_format" if "json_schema" in error.settings else None
    return ApiError(400, str(error), code="invalid_value", param=param)


def _check_was_begun(answer: Answer) -> None:
    """Refuse to pass off as an answer what was cut before its first token."""
    if answer.finish_reason == "cancelled" and not answer.tokens:
        raise ApiError(503, "there was no time to answer: ask again later.", code="timeout", retry_after=5)


def timings(of: Timings, answer: Answer) -> dict[str, Any]:
    """llama-server's ``timings``, and with them loading and pictures; docs/server.md explains each."""
    return {
        "load_ms": _ms(of.load_s),
        "image_n": answer.usage.image_tokens,
        "image_ms": _ms(of.image_s),
        "cache_n": answer.usage.cached_tokens,
        "prompt_n": of.prefill_tokens,
        "prompt_ms": _ms(of.prefill_s),
        "prompt_per_second": of.prefill_tokens_per_s,
        "predicted_n": answer.usage.completion_tokens,
        "predicted_ms": _ms(of.decode_s),
        "predicted_per_second": of.decode_tokens_per_s,
    }


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)


def logprob_json(logprob: TokenLogprob) -> dict[str, Any]:
    """OpenAI's entry for a token and those in its place."""
    chosen, *top = (
        {
            "token": one.bytes.decode(errors="replace"),
            "bytes": list(one.bytes),
            "logprob": max(one.logprob, LEAST_LOGPROB),
        }
        for one in (logprob.chosen, *logprob.top)
    )
    return {**chosen, "top_logprobs": top}
