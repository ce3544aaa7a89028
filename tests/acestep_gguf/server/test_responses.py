"""The official client's own calls of /v1/responses, and its own types for what it gets."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.support.live_server import LiveServer, about, data_lines, data_url, refusal

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def response(server: LiveServer, **body: Any) -> Response:
    raw = server.client().responses.with_raw_response.create(model="tiny", **body)
    return Response.model_validate_json(raw.text)


def events(server: LiveServer, **body: Any) -> list[Any]:
    body = {"model": "tiny", "stream": True, **body}
    with httpx.stream("POST", f"{server.url}/v1/responses", json=body, timeout=60) as stream:
        assert stream.status_code == 200
        return [EVENT.validate_json(line) for line in data_lines([*stream.iter_lines()])]


def asking(picture: Path) -> list[dict[str, Any]]:
    parts = [
        {"type": "input_image", "image_url": data_url(picture), "detail": "auto"},
        {"type": "input_text", "text": "What is this?"},
    ]
    return [{"role": "user", "content": parts}]


def test_it_is_the_answer_of_a_chat_completion(server: LiveServer, picture: Path) -> None:
    chat = server.ask(messages=about(picture), max_tokens=6).json()
    got = response(server, input=asking(picture), max_output_tokens=6)
    assert got.output_text == chat["choices"][0]["message"]["content"]
    assert got.status == "incomplete"
    assert got.incomplete_details is not None
    assert got.incomplete_details.reason == "max_output_tokens"
    assert got.usage is not None
    assert got.usage.input_tokens == chat["usage"]["prompt_tokens"]


def test_instructions_are_a_system_message(server: LiveServer) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    chat = server.ask(messages=messages, max_tokens=6).json()
    got = response(server, instructions="Be brief.", input="Hello", max_output_tokens=6)
    assert got.output_text == chat["choices"][0]["message"]["content"]
    assert got.instructions == "Be brief."


def test_what_was_given_out_may_be_sent_back(server: LiveServer, picture: Path) -> None:
    first = response(server, input=asking(picture), max_output_tokens=4)
    more = [
        *asking(picture),
        *(item.model_dump() for item in first.output),
        {"role": "user", "content": "And?"},
    ]
    second = response(server, input=more, max_output_tokens=4)
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.input_tokens_details.cached_tokens >= first.usage.input_tokens


def test_events(server: LiveServer, picture: Path) -> None:
    whole = response(server, input=asking(picture), max_output_tokens=6)
    got = events(server, input=asking(picture), max_output_tokens=6)
    assert [one.sequence_number for one in got] == [*range(len(got))]
    names = [one.type.removeprefix("response.") for one in got]
    assert names[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert names[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    deltas = [one.delta for one in got if one.type == "response.output_text.delta"]
    assert len(deltas) > 1
    assert "".join(deltas) == got[-4].text == got[-1].response.output_text == whole.output_text


def test_the_client_streams(server: LiveServer) -> None:
    with server.client().responses.stream(model="tiny", input="Hello", max_output_tokens=5) as stream:
        last = (
            stream.get_final_response() if any(one.type == "response.completed" for one in stream) else None
        )
    with server.client().responses.create(
        model="tiny", input="Hello", max_output_tokens=5, stream=True
    ) as raw:
        text = "".join(one.delta for one in raw if one.type == "response.output_text.delta")
    assert last is None or last.output_text == text
    assert text == response(server, input="Hello", max_output_tokens=5).output_text


def test_answers_follow_a_schema(server: LiveServer) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    form = {"type": "json_schema", "name": "number", "schema": schema, "strict": True}
    got = response(server, input="How many?", text={"format": form})
    assert json.loads(got.output_text)["n"] in {1, 2}
    assert got.status == "completed"


def test_logprobs(server: LiveServer) -> None:
    include: Any = ["message.output_text.logprobs"]
    got = response(server, input="Hello", include=include, top_logprobs=2, max_output_tokens=3)
    item: Any = got.output[0]
    assert [len(one.top_logprobs) for one in item.content[0].logprobs] == [2, 2, 2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id is not supported"),
        ({"conversation": "c"}, "conversation is not supported"),
        ({"tools": [{"type": "web_search"}]}, "tools is not supported"),
        ({"background": True}, "background is not supported"),
        ({"truncation": "auto_"}, "truncation is not supported"),
        ({"input": []}, "input"),
        ({"input": [{"type": "function_call", "name": "x"}]}, "input.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "image_url"),
        ({"input": "word " * 400}, "the context holds 256"),
        ({"unheard_of": 1}, "unheard_of is not known"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused(server: LiveServer, change: dict[str, Any], words: str, stream: bool) -> None:
    refusal(server.post("/v1/responses", {"input": "Hello", "stream": stream, **change}), 400, words)
