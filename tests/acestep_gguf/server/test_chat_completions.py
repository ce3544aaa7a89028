"""The official client's own calls, and its own types for what it gets."""

import json
import math
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from acestep_gguf import AceStep
from tests.support.live_server import LiveServer, about, data_lines, refusal


def completion(server: LiveServer, **body: Any) -> ChatCompletion:
    response = server.client().chat.completions.with_raw_response.create(model="tiny", **body)
    return ChatCompletion.model_validate_json(response.text)


def chunks(server: LiveServer, **body: Any) -> list[ChatCompletionChunk]:
    request = {"model": "tiny", "stream": True, **body}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=request, timeout=60) as response:
        assert response.status_code == 200
        *lines, last = data_lines([*response.iter_lines()])
    assert last == "[DONE]"
    return [ChatCompletionChunk.model_validate_json(line) for line in lines]


def test_the_answer_is_the_one_that_python_gives(
    server: LiveServer, tiny_bundle: Path, picture: Path
) -> None:
    with AceStep(tiny_bundle, quant="F32", n_threads=1, n_ctx=256) as model:
        expected = model.generate("What is this?", [picture], max_tokens=9)
    got = completion(server, messages=about(picture), max_tokens=9)
    (choice,) = got.choices
    assert choice.message.content == expected.text
    assert choice.finish_reason == expected.finish_reason == "length"
    assert got.usage is not None
    assert got.usage.prompt_tokens == expected.usage.prompt_tokens
    assert got.usage.completion_tokens == 9
    assert got.usage.prompt_tokens_details is not None
    assert got.usage.prompt_tokens_details.image_tokens == expected.usage.image_tokens


def test_a_stream_has_the_same_text_and_counts(server: LiveServer, picture: Path) -> None:
    whole = completion(server, messages=about(picture), max_completion_tokens=9)
    *pieces, last = chunks(
        server, messages=about(picture), max_completion_tokens=9, stream_options={"include_usage": True}
    )
    assert (
        "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole.choices[0].message.content
    )
    assert pieces[0].choices[0].delta.role == "assistant"
    assert [piece.choices[0].finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]
    assert len({piece.id for piece in (*pieces, last)}) == 1
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 9
    assert all(piece.usage is None for piece in pieces)
    extra = pieces[-1].model_extra or {}
    assert extra["timings"]["predicted_n"] == 9
    assert extra["timings"]["image_n"] == 4


def test_the_client_streams(server: LiveServer) -> None:
    messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    with server.client().chat.completions.create(
        model="tiny", messages=messages, stream=True, max_tokens=5
    ) as stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == completion(server, messages=messages, max_tokens=5).choices[0].message.content


def test_a_conversation_goes_on_from_what_was_read(server: LiveServer, picture: Path) -> None:
    first = completion(server, messages=about(picture), max_tokens=4)
    answer = first.choices[0].message
    more = [*about(picture), answer.model_dump(), {"role": "user", "content": "And now?"}]
    second = completion(server, messages=more, max_tokens=4)
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert (second.usage.prompt_tokens_details.cached_tokens or 0) >= first.usage.prompt_tokens


def test_choices(server: LiveServer, picture: Path) -> None:
    drawn = completion(server, messages=about(picture), n=3, temperature=1.5, seed=7, max_tokens=12)
    texts = [choice.message.content for choice in drawn.choices]
    assert [choice.index for choice in drawn.choices] == [0, 1, 2]
    assert len({*texts}) == 3
    again = completion(server, messages=about(picture), n=3, temperature=1.5, seed=7, max_tokens=12)
    assert [choice.message.content for choice in again.choices] == texts
    assert drawn.usage is not None
    assert drawn.usage.completion_tokens > 12
    streamed = chunks(server, messages=about(picture), n=3, temperature=1.5, seed=7, max_tokens=12)
    for number, text in enumerate(texts):
        pieces = [chunk.choices[0] for chunk in streamed if chunk.choices[0].index == number]
        assert "".join(piece.delta.content or "" for piece in pieces) == text


def test_logprobs(server: LiveServer, picture: Path) -> None:
    got = completion(server, messages=about(picture), logprobs=True, top_logprobs=2, max_tokens=5)
    logprobs = got.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 5
    for one in logprobs.content:
        assert len(one.top_logprobs) == 2
        assert 0 < math.exp(one.logprob) <= 1
        assert one.logprob == one.top_logprobs[0].logprob  # temperature is 0
    streamed = chunks(server, messages=about(picture), logprobs=True, max_tokens=5)
    found = [one for chunk in streamed if (of := chunk.choices[0].logprobs) for one in of.content or ()]
    assert [one.token for one in found] == [one.token for one in logprobs.content]
    assert all(one.top_logprobs == [] for one in found)


SCHEMA = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}


def test_answers_follow_a_schema(server: LiveServer, picture: Path) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA, "strict": True}}
    got = completion(server, messages=about(picture), response_format=form)
    assert json.loads(got.choices[0].message.content or "")["colour"] in {"red", "blue"}
    assert got.choices[0].finish_reason == "stop"


def test_json_objects_begin_as_such(server: LiveServer) -> None:
    messages = [{"role": "user", "content": "JSON!"}]
    got = completion(server, messages=messages, response_format={"type": "json_object"}, max_tokens=6)
    assert (got.choices[0].message.content or "").startswith("{")


def test_stop(server: LiveServer, picture: Path) -> None:
    text = completion(server, messages=about(picture), max_tokens=12).choices[0].message.content or ""
    stop = text[3:5]
    got = completion(server, messages=about(picture), max_tokens=12, stop=[stop])
    assert got.choices[0].message.content == text[: text.index(stop)]
    assert got.choices[0].finish_reason == "stop"


def test_models(server: LiveServer) -> None:
    (model,) = server.client().models.list().data
    assert model.id == "tiny"
    assert server.client().models.retrieve("tiny") == model
    refusal(httpx.get(f"{server.url}/v1/models/other"), 404, "tiny")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "gpt-5"}, "no such model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]}, "content"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 9}, "n"),
        ({"stop": [""]}, "stop"),
        ({"top_logprobs": 2}, "logprobs"),
        ({"tools": [{"type": "function"}]}, "tools is not supported"),
        ({"logit_bias": {"1": 5}}, "logit_bias is not supported"),
        ({"grammar": 'root ::= "a"'}, "grammar is not supported"),
        ({"temprature": 1}, "temprature is not known"),
        ({"response_format": {"type": "json_schema"}}, "json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "thing"}}}},
            "json_schema",
        ),
        ({"messages": [{"role": "user", "content": "word " * 400}]}, "the context holds 256"),
        ({"messages": [{"role": "user", "content": "word " * 40_000}]}, "far longer"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused(server: LiveServer, change: dict[str, Any], words: str, stream: bool) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "stream": stream, **change}
    refusal(server.ask(**body), 404 if "model" in change else 400, words)


def test_what_is_ignored(server: LiveServer) -> None:
    got = completion(
        server,
        messages=[{"role": "user", "content": "Hello", "name": "me"}],
        max_tokens=2,
        user="somebody",
        store=True,
        tools=[],
        tool_choice="auto",
        frequency_penalty=0,
        metadata={"a": "b"},
    )
    assert got.choices[0].finish_reason == "length"
