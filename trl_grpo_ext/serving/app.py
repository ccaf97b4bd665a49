"""The proxy as a FastAPI application."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from trl_grpo_ext.serving.errors import ProxyError
from trl_grpo_ext.serving.forwarding import Upstream
from trl_grpo_ext.serving.lessons import Libraries, Shown, with_lessons
from trl_grpo_ext.serving.reading import chat_request, check_key, read_body
from trl_grpo_ext.serving.settings import ServeSettings

logger = logging.getLogger("trl_grpo_ext.serving")

CONNECT_SECONDS = 10.0


def create_app(settings: ServeSettings, libraries: Libraries) -> FastAPI:
    """Return the application: POST /v1/chat/completions, GET /v1/models, GET /health.

    A domain's lessons are added below /domains/{domain}/v1, to be given to a client as its base URL. Errors have the
    form of OpenAI's; keys and texts are in no log.

    Args:
        settings: where to, and for whom.
        libraries: the lessons.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        timeout = httpx.Timeout(settings.timeout, connect=CONNECT_SECONDS)
        async with httpx.AsyncClient(timeout=timeout, limits=limits) as client:
            app.state.upstream = Upstream(settings, client)
            yield

    app = FastAPI(title="trl-grpo-ext", lifespan=lifespan, openapi_url=None)
    app.state.settings, app.state.libraries = settings, libraries
    for prefix in ("/v1", "/domains/{domain}/v1"):
        app.add_api_route(f"{prefix}/chat/completions", _chat, methods=["POST"], response_model=None)
        app.add_api_route(f"{prefix}/models", _models, methods=["GET"], response_model=None)
    app.add_api_route("/health", _health, methods=["GET"], response_model=None)
    app.add_exception_handler(ProxyError, _proxy_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.middleware("http")(_logged)
    return app


async def _chat(request: Request, domain: str = "") -> Response:
    state = request.app.state
    # The body first: a client that is still sending reads no answer.
    body = await read_body(request, state.settings.max_body_bytes)
    check_key(request, state.settings)
    data = chat_request(body)
    shown = await run_in_threadpool(_shown, state.libraries, domain)
    try:
        data["messages"] = with_lessons(data["messages"], shown.text, state.settings.template)
    except TypeError:
        raise ProxyError(400, "The system message must be text, to hold the lessons.", "invalid_messages") from None
    extra = {"x-experience-lessons": str(shown.count), "x-experience-version": str(shown.version)}
    return await state.upstream.post("chat/completions", request, data, extra)


async def _models(request: Request, domain: str = "") -> Response:
    check_key(request, request.app.state.settings)
    return await request.app.state.upstream.get("models", request)


async def _health(request: Request) -> dict[str, Any]:
    stale = await run_in_threadpool(request.app.state.libraries.stale)
    return {"status": "stale" if stale else "ok", "stale": stale}


def _shown(libraries: Libraries, domain: str) -> Shown:
    try:
        return libraries.shown(domain)
    except KeyError:
        there = ", ".join(libraries.names()) or "none"
        raise ProxyError(404, f"There is no domain {domain!r}; there are: {there}.", "unknown_domain") from None


def _answer(error: ProxyError) -> JSONResponse:
    return JSONResponse({"error": error.error()}, error.status)


async def _proxy_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProxyError)
    return _answer(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{error.detail}: this proxy has POST .../v1/chat/completions and GET .../v1/models."
    return _answer(ProxyError(error.status_code, message, "unknown_url"))


async def _logged(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    start = time.perf_counter()
    response = await call_next(request)
    milliseconds = 1000 * (time.perf_counter() - start)
    # The path, and not the query: some clients put their key there.
    logger.info("%s %s %d %.0f ms", request.method, request.url.path, response.status_code, milliseconds)
    return response
