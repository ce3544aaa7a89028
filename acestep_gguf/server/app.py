"""The routes of a server, and its beginning and end."""

import base64
import io
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.routing import Match

from acestep_gguf.engine.engine import AceStep
from acestep_gguf.server.access import Access
from acestep_gguf.server.answering import Answering
from acestep_gguf.server.chat_completions import ChatCompletion
from acestep_gguf.server.errors import ApiError, ErrorBody, internal_error, log_failure, validation_error
from acestep_gguf.server.event_stream import ClientLeft, EventStream, while_connected
from acestep_gguf.server.loaded_models import Models
from acestep_gguf.server.metrics import Metrics
from acestep_gguf.server.pictures import open_picture
from acestep_gguf.server.request_models import ChatRequest, PreviewRequest, ResponsesRequest
from acestep_gguf.server.responses import ModelResponse
from acestep_gguf.server.settings import ServerSettings

PAGE: Final = Path(__file__).parent / "page"
METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
CLIENT_LEFT: Final = 499  # nginx's, for logs: nobody reads it


def make_app(models: Models, settings: ServerSettings) -> FastAPI:
    """What answers requests about ``models``."""
    metrics = models.metrics
    answering = Answering(models, settings)

    # FastAPI's own pages of documentation load scripts from elsewhere.
    app = FastAPI(
        title="acestep-gguf",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},
    )

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        for name, thread in models.threads.items():
            metrics.open.labels(name).set(thread.n_open)
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [*map(models.described, models.bundles)]}

    @app.get("/v1/models/{name}")
    async def retrieve_model(name: str) -> dict[str, Any]:
        return models.described(models.named(name))

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        completion = ChatCompletion(answering, body)
        if body.stream:
            return EventStream(completion.events())
        return JSONResponse(await while_connected(request, completion.whole()))

    @app.post("/v1/responses")
    async def responses(body: ResponsesRequest, request: Request) -> Response:
        response = ModelResponse(answering, body)
        if body.stream:
            return EventStream(response.events())
        return JSONResponse(await while_connected(request, response.whole()))

    @app.post("/v1/images/preview")
    async def preview(body: PreviewRequest) -> dict[str, Any]:
        async with models.lend(models.named(body.model)) as thread:
            return await answering.in_thread(_preview, body.image_url, await thread.model(), settings)

    routes = [route for route in app.routes if isinstance(route, APIRoute)]

    @app.api_route("/v1/{rest:path}", methods=[*METHODS], include_in_schema=False)
    async def nothing(request: Request) -> None:
        """Not the page's files, which are looked for otherwise."""
        there = [route for route in routes if route.matches(request.scope)[0] != Match.NONE]
        taken = sorted({method for route in there for method in route.methods or ()})
        if taken:
            raise ApiError(405, f"this path takes {', '.join(taken)}, not {request.method}.")
        raise ApiError(404, f"there is no such path: {', '.join(route.path for route in routes)} are.")

    _handle_errors(app)
    app.mount("/", StaticFiles(directory=PAGE, html=True))
    app.add_middleware(_Counting, metrics=metrics)
    app.add_middleware(Access, settings=settings)
    return app


def _preview(url: str, model: AceStep, settings: ServerSettings) -> dict[str, Any]:
    """A picture as the model sees it, and what it costs."""
    picture = open_picture(url, model, settings)
    seen = model.as_seen(picture)
    png = io.BytesIO()
    seen.save(png, "PNG")
    return {
        "object": "image.preview",
        "image_url": "data:image/png;base64," + base64.b64encode(png.getvalue()).decode(),
        "width": seen.width,
        "height": seen.height,
        "image_tokens": picture.input.n_tokens,
    }


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return validation_error(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        known = error if isinstance(error, ApiError) else ApiError(error.status_code, f"{error.detail}.")
        return known.response()

    @app.exception_handler(ClientLeft)
    async def left(_: Request, __: ClientLeft) -> Response:
        return Response(status_code=CLIENT_LEFT)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        log_failure(error)
        return internal_error().response()


class _Counting:
    """ASGI middleware that counts requests by their route and status."""

    def __init__(self, app: Any, metrics: Metrics) -> None:
        self._app = app
        self._requests = metrics.requests

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def counting(message: Any) -> None:
            if message["type"] == "http.response.start":
                route = getattr(
                    scope.get("route"), "path", "other"
                )  # a stranger's path would be a new series
                self._requests.labels(route, message["status"]).inc()
            await send(message)

        await self._app(scope, receive, counting)
