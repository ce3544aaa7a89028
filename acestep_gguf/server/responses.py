"""/v1/responses: chunks become OpenAI's events, or one response. Nothing of it is stored."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from secrets import token_hex
from time import time
from typing import Any, Final

from acestep_gguf.answer import Answer, TokenLogprob
from acestep_gguf.server.answering import FINISH_REASONS, Answering, logprob_json, timings
from acestep_gguf.server.errors import ApiError
from acestep_gguf.server.event_stream import event
from acestep_gguf.server.request_models import ResponsesRequest

DEFAULT_TEMPERATURE: Final = 0.0


class ModelResponse:
    """One request, on its way to a response with one message in its output."""

    def __init__(self, answering: Answering, request: ResponsesRequest) -> None:
        self._name = answering.models.named(request.model)
        self._answer_request = request.answer_request()
        self._request = request
        self._answering = answering
        self._id = f"resp_{token_hex(12)}"
        self._item_id = f"msg_{token_hex(12)}"
        self._created_at = int(time())
        self._n_events = 0
        self._logprobs: list[TokenLogprob] = []

    async def whole(self) -> dict[str, Any]:
        """The response, when its message is written."""
        answer: Answer | None = None
        async with aclosing(self._answering.chunks(self._name, self._answer_request)) as chunks:
            async for _, chunk in chunks:
                self._logprobs += chunk.logprobs
                answer = chunk.answer
        assert answer is not None  # noqa: S101 (it is in the last chunk)
        return self._response(answer)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The response as events, as it is written."""
        has_begun = False
        at = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        async with aclosing(self._answering.chunks(self._name, self._answer_request)) as chunks:
            try:
                async for _, chunk in chunks:
                    if not has_begun:  # what is refused at once has no events, but a status of its own
                        has_begun = True
                        for kind in ("response.created", "response.in_progress"):
                            yield self._event(kind, response=self._response(None))
                        item = self._item("in_progress", [])
                        yield self._event("response.output_item.added", output_index=0, item=item)
                        yield self._event("response.content_part.added", **at, part=self._part(""))
                    self._logprobs += chunk.logprobs
                    if chunk.text or chunk.logprobs:
                        yield self._event(
                            "response.output_text.delta",
                            **at,
                            delta=chunk.text,
                            logprobs=[*map(logprob_json, chunk.logprobs)],
                        )
                    if (answer := chunk.answer) is not None:
                        part = self._part(answer.text)
                        response = self._response(answer)
                        (item,) = response["output"]
                        yield self._event(
                            "response.output_text.done", **at, text=answer.text, logprobs=part["logprobs"]
                        )
                        yield self._event("response.content_part.done", **at, part=part)
                        yield self._event("response.output_item.done", output_index=0, item=item)
                        yield self._event(f"response.{response['status']}", response=response)
            except ApiError as error:
                if not has_begun:
                    raise
                failed = self._response(None) | {
                    "status": "failed",
                    "error": {"code": "server_error", "message": error.detail},
                }
                yield self._event("response.failed", response=failed)

    def _event(self, kind: str, **more: Any) -> bytes:
        data = {"type": kind, "sequence_number": self._n_events, **more}
        self._n_events += 1
        return event(data, kind)

    def _response(self, answer: Answer | None) -> dict[str, Any]:
        """The response, as far as it is."""
        request = self._request
        response: dict[str, Any] = {
            "id": self._id,
            "object": "response",
            "created_at": self._created_at,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": {},
            "model": self._name,
            "output": [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": DEFAULT_TEMPERATURE if request.temperature is None else request.temperature,
            "text": {"format": self._format()},
            "tool_choice": "none",
            "tools": [],
            "top_logprobs": request.top_logprobs or 0,
            "top_p": request.top_p,
            "truncation": "disabled",
            "usage": None,
        }
        if answer is None:
            return response
        is_whole = FINISH_REASONS[answer.finish_reason] == "stop"
        status = "completed" if is_whole else "incomplete"
        return response | {
            "status": status,
            "completed_at": int(time()) if is_whole else None,
            "incomplete_details": None if is_whole else {"reason": "max_output_tokens"},
            "output": [self._item(status, [self._part(answer.text)])],
            "usage": _usage(answer),
            "timings": timings(answer.timings, answer),
        }

    def _format(self) -> dict[str, Any]:
        form = self._request.format
        if form.type != "json_schema":
            return {"type": form.type}
        schema = form.schema_ or {}
        return {"type": form.type, "name": form.name or "answer", "schema": schema, "strict": True}

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _part(self, text: str) -> dict[str, Any]:
        logprobs = [*map(logprob_json, self._logprobs)]
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _usage(answer: Answer) -> dict[str, Any]:
    usage = answer.usage
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": 0,
            "image_tokens": usage.image_tokens,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
