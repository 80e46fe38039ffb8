"""The server's places: OpenAI's completions, lm-eval's tokenizer, health, and the chat page.

A request becomes rows of an engine. Their news come back by a queue of the event loop. When the client leaves, its rows
are told so, and the engine computes nothing more for them: a stream notices by being cancelled, a plain request asks
beside its waiting.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from model.chat_template import DOCUMENT_END
from serve import replies, wire
from serve.engine import Busy
from serve.errors import ApiError
from serve.guards import Key, Size
from serve.models import Models, Served
from serve.rows import Ask, Event, Row

PAGE = Path(__file__).parent / "page"
MAX_BODY = 8 << 20
LOOK_SECONDS = 0.2
"""How often a plain request looks whether its client is still there."""
POLICY = (
    "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def build(
    models: Models, *, key: str = "", hosts: Sequence[str] = ("127.0.0.1", "localhost", "[::1]")
) -> Any:
    """The ASGI application. `key`: asked of clients, if given; `hosts`: names by which it may be called."""
    app = FastAPI(title="Steel", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(HTTPException, _not_here)
    app.add_api_route("/health", lambda: {"status": "ok"})
    app.add_api_route(
        "/v1/models", lambda: {"object": "list", "data": list(map(models.entry, models.offers))}
    )
    app.add_api_route("/v1/models/{name:path}", lambda name: _entry(models, name))
    _add_completions(app, models)
    _add_tokenizer(app, models)
    _add_page(app)
    app.add_middleware(Size, limit=MAX_BODY)
    if key:
        app.add_middleware(Key, key=key)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*hosts], www_redirect=False)
    return app


def _add_completions(app: FastAPI, models: Models) -> None:
    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Any:
        asked = wire.parse(wire.ChatRequest, await _json(request))
        served = await run_in_threadpool(models.get, asked.model)
        if not served.chat:
            raise ApiError(f"{served.name} knows no turns: use /v1/completions", param="model")
        ids = served.template.ids([message.turn for message in asked.messages])
        top = asked.top_logprobs if asked.logprobs else None
        wanted = asked.max_completion_tokens or asked.max_tokens
        asks = [_ask(served, ids, asked, wanted, top, seed_step=i) for i in range(asked.n)]
        engine = served.engine
        shape = replies.Chat(served.name, engine.tokenizer, engine.ends, logprobs=asked.logprobs)
        return await _answer(request, served, asks, shape, asked, len(ids))

    @app.post("/v1/completions")
    async def completions(request: Request) -> Any:
        asked = wire.parse(wire.CompletionRequest, await _json(request))
        served = await run_in_threadpool(models.get, asked.model)
        prompts = [_prompt_ids(served, prompt) for prompt in asked.prompts]
        if not 1 <= len(prompts) * asked.n <= wire.MAX_ROWS:
            raise ApiError(f"1 to {wire.MAX_ROWS} answers can be asked for at once", param="prompt")
        asks = [
            _ask(served, ids, asked, asked.max_tokens, asked.logprobs, seed_step=i, echo=asked.echo)
            for ids in prompts
            for i in range(asked.n)
        ]
        texts = [
            prompt if isinstance(prompt, str) else served.engine.tokenizer.decode(prompt)
            for prompt in asked.prompts
            for _ in range(asked.n)
        ]
        shape = replies.Completion(
            served.name,
            served.engine.tokenizer,
            logprobs=asked.logprobs is not None,
            prompts=texts if asked.echo else (),
        )
        return await _answer(request, served, asks, shape, asked, sum(map(len, prompts)))


def _add_tokenizer(app: FastAPI, models: Models) -> None:
    @app.get("/tokenizer_info")
    async def info(model: str = "") -> Any:
        served = await run_in_threadpool(models.get, model)
        ends = [served.engine.tokenizer.decode([number]) for number in sorted(served.engine.ends)]
        known = served.engine.tokenizer.special_id(DOCUMENT_END) is not None
        begin = DOCUMENT_END if known else (ends[0] if ends else None)
        settings = served.template.settings
        eos = settings.get("eos_token") or begin
        eos = eos.get("content") if isinstance(eos, dict) else eos
        return {
            "bos_token": begin,
            "eos_token": eos,
            "pad_token": begin,
            "chat_template": served.template.text,
        }

    @app.post("/tokenize")
    async def tokenize(request: Request) -> Any:
        asked = wire.parse(wire.TokenizeRequest, await _json(request))
        served = await run_in_threadpool(models.get, asked.model)
        ids = served.engine.tokenizer.whole.encode(asked.prompt, add_special_tokens=False).ids
        return {"tokens": ids, "count": len(ids), "max_model_len": served.engine.context}

    @app.post("/detokenize")
    async def detokenize(request: Request) -> Any:
        asked = wire.parse(wire.DetokenizeRequest, await _json(request))
        served = await run_in_threadpool(models.get, asked.model)
        return {"prompt": served.engine.tokenizer.decode(_known(served, asked.tokens, "tokens"))}


def _add_page(app: FastAPI) -> None:
    headers = {
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }
    files = {
        "/": "index.html",
        "/page/chat.js": "chat.js",
        "/page/text.js": "text.js",
        "/page/chat.css": "chat.css",
    }
    for place, name in files.items():
        app.add_api_route(place, _file(PAGE / name, headers), methods=["GET"])


def _file(path: Path, headers: dict[str, str]) -> Callable[[], FileResponse]:
    return lambda: FileResponse(path, headers=headers)


# ------------------------------------------------------------------------- from request to rows
async def _json(request: Request) -> Any:
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError):
        raise ApiError("the body is no JSON") from None


def _prompt_ids(served: Served, prompt: str | list[int]) -> list[int]:
    ids = (
        served.engine.tokenizer.encode(prompt)
        if isinstance(prompt, str)
        else _known(served, prompt, "prompt")
    )
    if not ids:
        begin = served.engine.tokenizer.special_id(DOCUMENT_END)
        if begin is None:
            raise ApiError("the prompt is empty", param="prompt")
        ids = [begin]
    return ids


def _known(served: Served, ids: list[int], param: str) -> list[int]:
    if any(number >= served.engine.known for number in ids):
        raise ApiError(f"ids go from 0 to {served.engine.known - 1}", param=param)
    return ids


def _ask(
    served: Served,
    ids: Sequence[int],
    asked: Any,
    wanted: int | None,
    logprobs: int | None,
    *,
    seed_step: int,
    echo: bool = False,
) -> Ask:
    engine, most = served.engine, served.engine.limits.max_new_tokens
    if wanted is not None and wanted > most:
        raise ApiError(f"max_tokens goes up to {most:,} here", param="max_tokens")
    room = engine.context - len(ids)
    scored = room == 0 and wanted is not None and wanted <= 1  # the token behind the last one is not fed
    if room < 1 and not scored:
        raise ApiError(
            f"the prompt has {len(ids):,} tokens, the model's context is {engine.context:,}",
            param="messages" if isinstance(asked, wire.ChatRequest) else "prompt",
            code="context_length_exceeded",
        )
    return Ask(
        ids=tuple(ids),
        max_tokens=min(most if wanted is None else wanted, max(room, 1)),
        temperature=asked.temperature,
        top_p=asked.top_p,
        seed=None if asked.seed is None else asked.seed + seed_step,
        stop=asked.stops,
        logprobs=logprobs,
        echo=echo,
    )


# ------------------------------------------------------------------------- from rows to replies
async def _answer(
    request: Request,
    served: Served,
    asks: list[Ask],
    shape: replies.Shape,
    asked: wire.Sent,
    prompt_tokens: int,
) -> Any:
    loop, news = asyncio.get_running_loop(), asyncio.Queue()

    def tell(index: int, event: Event) -> None:
        loop.call_soon_threadsafe(news.put_nowait, (index, event))

    try:
        rows = served.engine.submit(asks, tell)
    except Busy as error:
        raise ApiError(f"too many requests: {error}", status=429, code="queue_full") from None
    if asked.stream:
        told = asked.stream_options.get("include_usage", False)
        frames = _frames(rows, news, shape, told, prompt_tokens)
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(frames, media_type="text/event-stream", headers=headers)
    answers = [replies.Answer() for _ in rows]
    collected = asyncio.ensure_future(_collect(news, answers))
    try:
        while not (await asyncio.wait([collected], timeout=LOOK_SECONDS))[0]:
            if await request.is_disconnected():
                return JSONResponse(None, 499)
        collected.result()
    finally:
        collected.cancel()
        for row in rows:
            row.leave()
    return shape.whole(answers, prompt_tokens)


async def _collect(news: asyncio.Queue, answers: list[replies.Answer]) -> None:
    """Until every answer is complete."""
    while any(answer.reason is None for answer in answers):
        index, event = await news.get()
        if event.error is not None:
            raise ApiError(f"the model failed: {event.error}", status=500)
        answers[index].add(event)


async def _frames(
    rows: list[Row], news: asyncio.Queue, shape: replies.Shape, told: bool, prompt_tokens: int
) -> AsyncIterator[str]:
    more = {"usage": None} if told else {}
    made, open_rows = 0, set(range(len(rows)))
    try:
        for index in range(len(rows)):
            if (first := shape.begin(index)) is not None:
                yield replies.frame(shape.chunk([first], **more))
        while open_rows:
            index, event = await news.get()
            if event.error is not None:
                error = ApiError(f"the model failed: {event.error}", status=500)
                yield replies.frame(error.body())
                return
            made += len(event.tokens)
            for choice in shape.piece(index, event):
                yield replies.frame(shape.chunk([choice], **more))
            if event.reason is not None:
                open_rows.discard(index)
        if told:
            yield replies.frame(shape.chunk([], usage=replies.usage(prompt_tokens, made)))
        yield replies.frame("[DONE]")
    finally:
        for row in rows:
            row.leave()


# ---------------------------------------------------------------------------------- refusals
async def _refused(request: Request, error: Any) -> JSONResponse:
    headers = {"Retry-After": "1"} if error.status == 429 else {}
    return JSONResponse(error.body(), error.status, headers=headers)


async def _not_here(request: Request, error: Any) -> JSONResponse:
    return JSONResponse(ApiError(str(error.detail), status=error.status_code).body(), error.status_code)


def _entry(models: Models, name: str) -> dict[str, Any]:
    if name not in models.offers:
        raise ApiError(f"there is no model {name!r} here", status=404, param="model", code="model_not_found")
    return models.entry(name)
