"""/v1/chat/completions: chunks become OpenAI's chunks, or one completion."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from secrets import token_hex
from time import time
from typing import Any

from acestep_gguf.answer import Answer, TokenLogprob, Usage
from acestep_gguf.server.answering import FINISH_REASONS, Answering, logprob_json, timings
from acestep_gguf.server.event_stream import event
from acestep_gguf.server.request_models import ChatRequest


class ChatCompletion:
    """One request, on its way to a response."""

    def __init__(self, answering: Answering, request: ChatRequest) -> None:
        self._name = answering.models.named(request.model)
        self._answer_request = request.answer_request()
        self._wants_usage = request.wants_usage
        self._answering = answering
        self._answers: dict[int, Answer] = {}
        self._head = {"id": f"chatcmpl-{token_hex(12)}", "created": int(time()), "model": self._name}

    async def whole(self) -> dict[str, Any]:
        """The completion, when all of its choices are written."""
        logprobs: list[list[TokenLogprob]] = [[] for _ in range(self._answer_request.n)]
        async with aclosing(self._answering.chunks(self._name, self._answer_request)) as chunks:
            async for number, chunk in chunks:
                logprobs[number] += chunk.logprobs
                if chunk.answer is not None:
                    self._answers[number] = chunk.answer
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [
                {
                    "index": number,
                    "message": {"role": "assistant", "content": answer.text, "refusal": None},
                    "logprobs": self._logprobs(logprobs[number]),
                    "finish_reason": FINISH_REASONS[answer.finish_reason],
                }
                for number, answer in sorted(self._answers.items())
            ],
            "usage": usage_json(self._answers),
            "timings": timings(self._answers[0].timings, self._answers[0]),
        }

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The completion as events, as it is written."""
        begun: set[int] = set()
        async with aclosing(self._answering.chunks(self._name, self._answer_request)) as chunks:
            async for number, chunk in chunks:
                if number not in begun:
                    begun.add(number)
                    yield self._event(number, {"role": "assistant", "content": ""})
                if chunk.text or chunk.logprobs:
                    logprobs = self._logprobs(chunk.logprobs)
                    yield self._event(number, {"content": chunk.text}, logprobs=logprobs)
                if chunk.answer is not None:
                    self._answers[number] = chunk.answer
                    reason = FINISH_REASONS[chunk.answer.finish_reason]
                    cost = timings(chunk.answer.timings, chunk.answer)
                    yield self._event(number, {}, finish_reason=reason, timings=cost)
        if self._wants_usage:
            yield event(self._chunk([], usage=usage_json(self._answers)))
        yield event(b"[DONE]")

    def _event(
        self,
        number: int,
        delta: Mapping[str, str],
        *,
        logprobs: Mapping[str, Any] | None = None,
        finish_reason: str | None = None,
        **more: Any,
    ) -> bytes:
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return event(self._chunk([choice], **more))

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        if self._wants_usage:
            more.setdefault("usage", None)
        return {**self._head, "object": "chat.completion.chunk", "choices": choices, **more}

    def _logprobs(self, logprobs: list[TokenLogprob] | tuple[TokenLogprob, ...]) -> dict[str, Any] | None:
        if self._answer_request.n_logprobs is None:
            return None
        return {"content": [logprob_json(one) for one in logprobs], "refusal": None}


def usage_json(answers: Mapping[int, Answer]) -> dict[str, Any]:
    """Token counts: of the prompt once, of all choices together."""
    first: Usage = answers[0].usage
    written = sum(answer.usage.completion_tokens for answer in answers.values())
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": written,
        "total_tokens": first.prompt_tokens + written,
        "prompt_tokens_details": {
            "cached_tokens": first.cached_tokens,
            "image_tokens": first.image_tokens,
            "text_tokens": first.prompt_tokens - first.image_tokens,
        },
    }
