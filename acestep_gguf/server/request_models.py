"""Bodies of requests: types and bounds by declaration; unsupported.py says what becomes of other fields."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from acestep_gguf.engine.logprobs import MOST_TOP_LOGPROBS
from acestep_gguf.prompt.messages import MAX_MESSAGES, MAX_PARTS
from acestep_gguf.server.settings import MAX_SCHEMA_BYTES, MOST_CHOICES
from acestep_gguf.server.unsupported import check_unsupported

MOST_STOPS: Final = 16
MAX_STOP_CHARS: Final = 500
MOST_SEED: Final = 2**32 - 1
ANY_OBJECT: Final[Mapping[str, Any]] = {"type": "object"}

ModelName = Annotated[str | None, Field(max_length=300, description="By default the first one.")]
Choices = Annotated[int | None, Field(ge=1, le=MOST_CHOICES)]
TokenLimit = Annotated[int | None, Field(ge=1)]
Temperature = Annotated[float | None, Field(ge=0, le=2)]
Probability = Annotated[float | None, Field(ge=0, le=1)]
TopLogprobs = Annotated[int | None, Field(ge=0, le=MOST_TOP_LOGPROBS)]
StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]


@dataclass(frozen=True, kw_only=True)
class AnswerRequest:
    """What a request asks of a model, whichever API it came by.

    Args:
        messages: as messages.py describes them, with URLs for pictures, or EmbedsBase64.
        options: of AnswerOptions, by their names.
        n: answers.
        n_logprobs: see Scheduler.submit.
    """

    model: str | None
    messages: list[dict[str, Any]]
    options: Mapping[str, Any]
    n: int = 1
    n_logprobs: int | None = None


class Part(BaseModel):
    """The base of all that a request consists of."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, hide_input_in_errors=True)

    @model_validator(mode="after")
    def _check_other_fields(self) -> Self:
        check_unsupported(self.model_extra or {})
        return self


class TextPart(Part):
    """Text in a message."""

    type: Literal["text"]
    text: str

    def as_part(self) -> dict[str, str]:
        """As messages.py describes it; so it is with the other parts."""
        return {"type": "text", "text": self.text}


class ImageUrl(Part):
    """Where a picture is; ``detail`` is ignored, since a model sees all pictures in one size."""

    url: str
    detail: str | None = None


class ImageUrlPart(Part):
    """A picture in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl | str

    def as_part(self) -> dict[str, str]:
        url = self.image_url if isinstance(self.image_url, str) else self.image_url.url
        return {"type": "image", "image": url}


@dataclass(frozen=True)
class EmbedsBase64:
    """A file that ``acestep-gguf encode`` wrote, in base64."""

    text: str


class ImageEmbedsPart(Part):
    """What another machine's vision tower made of a picture; vLLM's name, and a file of our own."""

    type: Literal["image_embeds"]
    image_embeds: str = Field(description="A file that acestep-gguf encode wrote, in base64.")

    def as_part(self) -> dict[str, Any]:
        return {"type": "image", "image": EmbedsBase64(self.image_embeds)}


ContentPart = Annotated[TextPart | ImageUrlPart | ImageEmbedsPart, Field(discriminator="type")]
Content = str | Annotated[list[ContentPart], Field(min_length=1, max_length=MAX_PARTS)]


class ChatMessage(Part):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content

    def as_message(self) -> dict[str, Any]:
        """As messages.py describes it."""
        return _message(self.role, self.content)


class JsonSchema(Part):
    """A schema that answers follow; its name and description are ignored, and it is always strict."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Part):
    """What an answer is: text, any JSON object, or JSON after a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with the type json_schema")
        return self


class StreamOptions(Part):
    """What a stream has besides text."""

    include_usage: bool | None = None


class ChatRequest(Part):
    """The body of /v1/chat/completions. ``top_k``, ``min_p`` and ``repeat_penalty`` are llama.cpp's."""

    model: ModelName = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: TokenLimit = None
    max_completion_tokens: TokenLimit = None
    temperature: Temperature = None
    top_p: Probability = None
    top_k: Annotated[int | None, Field(ge=0, le=2**31 - 1)] = None
    min_p: Probability = None
    repeat_penalty: Annotated[float | None, Field(ge=0.001, le=100)] = None
    seed: int | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=MOST_STOPS)] | None = None
    n: Choices = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs goes with logprobs: true")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes with stream: true")
        return self

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk of token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def answer_request(self) -> AnswerRequest:
        """What it asks of the model."""
        form = self.response_format or ResponseFormat(type="text")
        schema = None if form.json_schema is None else form.json_schema.schema_
        return AnswerRequest(
            model=self.model,
            messages=[message.as_message() for message in self.messages],
            options=_given(
                max_tokens=_smallest(self.max_tokens, self.max_completion_tokens),
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                min_p=self.min_p,
                repeat_penalty=self.repeat_penalty,
                seed=None if self.seed is None else self.seed % MOST_SEED,
                stop=(self.stop,) if isinstance(self.stop, str) else self.stop,
                json_schema=schema_of(form.type, schema),
            ),
            n=self.n or 1,
            n_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )


class InputTextPart(Part):
    """Text in an item; ``output_text`` is the model's."""

    type: Literal["input_text", "output_text"]
    text: str
    logprobs: list[Any] | None = None

    def as_part(self) -> dict[str, str]:
        return {"type": "text", "text": self.text}


class InputImagePart(Part):
    """A picture in an item."""

    type: Literal["input_image"]
    image_url: str
    detail: str | None = None

    def as_part(self) -> dict[str, str]:
        return {"type": "image", "image": self.image_url}


InputPart = Annotated[InputTextPart | InputImagePart | ImageEmbedsPart, Field(discriminator="type")]


class InputItem(Part):
    """A message; what the server gave as output may be sent back as it is."""

    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[InputPart], Field(min_length=1, max_length=MAX_PARTS)]
    id: str | None = None
    status: str | None = None

    def as_message(self) -> dict[str, Any]:
        """As messages.py describes it."""
        return _message(self.role, self.content)


class TextFormat(Part):
    """What an answer is, as /v1/responses writes it."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextConfig(Part):
    """Settings of the text of an answer."""

    format: TextFormat | None = None


class ResponsesRequest(Part):
    """The body of /v1/responses."""

    model: ModelName = None
    input: str | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: TokenLimit = None
    temperature: Temperature = None
    top_p: Probability = None
    top_logprobs: TopLogprobs = None
    text: TextConfig | None = None
    include: list[Literal["message.output_text.logprobs", "message.input_image.image_url"]] | None = None

    @property
    def format(self) -> TextFormat:
        """What the answer is."""
        return (self.text and self.text.format) or TextFormat(type="text")

    def answer_request(self) -> AnswerRequest:
        """What it asks of the model."""
        messages = [] if self.instructions is None else [{"role": "system", "content": self.instructions}]
        if isinstance(self.input, str):
            messages.append({"role": "user", "content": self.input})
        else:
            messages += [item.as_message() for item in self.input]
        wants_logprobs = "message.output_text.logprobs" in (self.include or ())
        return AnswerRequest(
            model=self.model,
            messages=messages,
            options=_given(
                max_tokens=self.max_output_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                json_schema=schema_of(self.format.type, self.format.schema_),
            ),
            n_logprobs=(self.top_logprobs or 0) if wants_logprobs else None,
        )


class PreviewRequest(Part):
    """The body of /v1/images/preview."""

    model: ModelName = None
    image_url: str


def schema_of(kind: str, schema: dict[str, Any] | None) -> Mapping[str, Any] | None:
    """The schema that an answer follows, if it does.

    Raises:
        ValueError: it is too long.
    """
    if kind == "text":
        return None
    if schema is None or kind == "json_object":
        return ANY_OBJECT
    try:
        length = len(json.dumps(schema))
    except RecursionError:
        length = MAX_SCHEMA_BYTES + 1
    if length > MAX_SCHEMA_BYTES:
        raise ValueError(f"the schema is longer than {MAX_SCHEMA_BYTES >> 10} KiB")
    return schema


def _message(role: str, content: str | Sequence[ContentPart | InputPart]) -> dict[str, Any]:
    parts = content if isinstance(content, str) else [part.as_part() for part in content]
    return {"role": "system" if role == "developer" else role, "content": parts}


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _smallest(*values: int | None) -> int | None:
    return min((value for value in values if value is not None), default=None)
