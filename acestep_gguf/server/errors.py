"""What a client is told when something goes wrong: OpenAI's error object, one line, nothing of the inside.

Messages of our own about what the client sent are handed on. What anything else says, a library's reason in
the middle of one of ours included, stays in the log.
"""

import logging
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from acestep_gguf.errors import (
    AceStepError,
    ContextOverflowError,
    ImageError,
    MemoryShortageError,
    MissingPackageError,
    PromptError,
    QueueFullError,
)

LOG: Final = logging.getLogger("acestep_gguf.server")
FIELD: Final = re.compile("[a-z_]{1,40}")
TYPES: Final = ("str", "list", "bool", "int", "float")
INVALID: Final = "invalid_request_error"
SERVER: Final = "server_error"

# Of each kind of error: status and code.
STATUS: Final[tuple[tuple[type[AceStepError], int, str], ...]] = (
    (ContextOverflowError, 400, "context_length_exceeded"),
    (ImageError, 400, "invalid_image"),
    (MissingPackageError, 400, "invalid_image"),
    (PromptError, 400, "invalid_prompt"),
    (QueueFullError, 429, "queue_full"),
    (MemoryShortageError, 503, "no_memory"),
)


class ErrorObject(BaseModel):
    """What went wrong, as OpenAI's clients expect it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every response that is no answer."""

    error: ErrorObject


class ApiError(HTTPException):
    """A refusal, or a failure, as the client sees it.

    Args:
        status: of HTTP.
        message: one line that says what to do.
        code: a word for programs.
        param: which field of the request it is about.
        retry_after: seconds.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        headers = None if retry_after is None else {"Retry-After": str(retry_after)}
        super().__init__(status, " ".join(message.split()), headers)
        self.code = code
        self.param = param

    def body(self) -> Mapping[str, Any]:
        """OpenAI's error object."""
        kind = INVALID if self.status_code < 500 else SERVER
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole answer of a request that ends with it."""
        return JSONResponse(self.body(), self.status_code, self.headers)


def api_error(error: AceStepError) -> ApiError:
    """What a client may know of an error of the library."""
    if "json_schema" in error.settings:
        return ApiError(400, str(error), code="invalid_schema", param="response_format")
    for kind, status, code in STATUS:
        if isinstance(error, kind):
            if kind is ImageError and error.__cause__ is not None:  # it has Pillow's words in it
                return ApiError(status, "a picture is damaged: save it again.", code=code)
            if kind is MissingPackageError:
                return ApiError(status, "pictures of this format are not read here: send JPEG.", code=code)
            if status == 503:
                return ApiError(status, "the model does not fit into memory now.", code=code, retry_after=30)
            return ApiError(status, str(error), code=code)
    return internal_error()


def internal_error() -> ApiError:
    """Something that is not the client's fault."""
    return ApiError(500, "the server failed to answer: its log says more.", code="internal_error")


def validation_error(errors: Sequence[Any]) -> ApiError:
    """What pydantic found wrong with a body, without what was in it."""
    # Where a string or a list may stand, there is an error for each: the deepest is about what was sent.
    deepest = max(errors, key=lambda error: len(error["loc"]))
    place = ".".join(_place(deepest["loc"]))
    if deepest["type"] == "json_invalid" or (not place and deepest["type"] != "value_error"):
        return ApiError(
            400, "the body is no JSON object: send one, as application/json.", code="invalid_json"
        )
    reason = str(deepest["msg"]).removeprefix("Value error, ")
    if deepest["type"] == "union_tag_invalid":
        reason = f"its type is none of {deepest['ctx']['expected_tags']}"
    message = f"{place}: {reason}" if place and not reason.startswith(place) else reason
    return ApiError(400, f"{message[:300]}.".replace("..", "."), code="invalid_value", param=place or None)


def _place(location: Sequence[object]) -> Iterator[str]:
    """Names of fields and numbers of entries, without the names of types that pydantic puts between them."""
    for step in location[1:]:
        text = str(step)
        if isinstance(step, int) or (FIELD.fullmatch(text) and text not in TYPES):
            yield text


def log_failure(error: BaseException) -> None:
    """Say in the log where something failed. Its message is left out: there may be a client's words in it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-4:]))
    what = str(error) if isinstance(error, AceStepError) else "(message left out)"
    LOG.error("%s: %s [%s]", type(error).__name__, what, where or "elsewhere")
