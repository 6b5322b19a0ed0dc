"""/v1/models, /v1/completions, /v1/chat/completions."""

import secrets
import time
from typing import Any, get_type_hints

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.responses import Response

from kvasir_router.express import Lane
from kvasir_router.front_door import VERSION, FrontDoor, House
from kvasir_router.openai.bodies import ChatBody, CompletionBody, GenerationBody
from kvasir_router.openai.completion_format import BestOf, CompletionFormat, Echo
from kvasir_router.openai.formats import AnswerHead, ChatFormat, ChoiceFormat, frames, whole_answer
from kvasir_router.openai.generation import Generation, Order, Terms
from kvasir_router.openai.prompts import TokenIds, chat_prompt, check_ids, completion_prompts, echoed_texts
from kvasir_router.openai.sampling import (
    DEFAULT_COMPLETION_TOKENS,
    chat_sampling,
    completion_sampling,
    echoed_logprobs,
    only_echoes,
)
from kvasir_router.sse import EventStream, unless_client_leaves


def openai_routes(house: House) -> APIRouter:
    routes = APIRouter()

    @routes.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(house, door) for door in house.doors]}

    @routes.get("/v1/models/{name:path}")
    async def get_model(name: str) -> dict[str, Any]:
        return _model(house, house.door(name))

    @routes.post("/v1/completions")
    async def create_completion(body: CompletionBody, http: Request) -> Response:
        door = house.door(body.model)

        async def tokenise() -> list[TokenIds]:
            return await completion_prompts(body, door.codec)

        sampling = completion_sampling(body, door.codec.defaults)
        answer_format = CompletionFormat(
            door.codec,
            body.return_token_ids,
            echo=Echo(echoed_texts(body, door.codec), body.n, echoed_logprobs(body)) if body.echo else None,
            num_prompt_logprobs=body.prompt_logprobs,
            best=BestOf(body.n, sampling.n, keeps_logprobs=body.logprobs is not None),
        )
        order = Order(
            wire_id=_wire_id(http, answer_format),
            sampling=sampling,
            num_prompts=_num_prompts(body),
            hides_answer=only_echoes(body),
            tokenise=tokenise,
            default_max_tokens=DEFAULT_COMPLETION_TOKENS,
            terms=_terms(body, http),
        )
        return await _answer(door, body, http, order, answer_format)

    @routes.post("/v1/chat/completions")
    async def create_chat_completion(body: ChatBody, http: Request) -> Response:
        door = house.door(body.model)

        async def tokenise() -> list[TokenIds]:
            return [await chat_prompt(body, door.codec)]

        answer_format = ChatFormat(door.codec, body.return_token_ids)
        order = Order(
            wire_id=_wire_id(http, answer_format),
            sampling=chat_sampling(body, door.codec.defaults),
            num_prompts=1,
            tokenise=tokenise,
            default_max_tokens=None,
            terms=_terms(body, http),
        )
        return await _answer(door, body, http, order, answer_format)

    return routes


def openai_lanes(routes: APIRouter) -> dict[str, Lane[Any]]:
    """Those of openai_routes that generate, by path."""
    posts = (route for route in routes.routes if isinstance(route, APIRoute) and "POST" in (route.methods or ()))
    return {route.path: Lane(get_type_hints(route.endpoint)["body"], route.endpoint) for route in posts}


async def _answer(
    door: FrontDoor, body: GenerationBody, http: Request, order: Order, answer_format: ChoiceFormat
) -> Response:
    body.refuse_unsupported()
    check_ids(order.sampling.stop_token_ids, door.codec, "stop_token_ids")
    check_ids(order.sampling.allowed_token_ids, door.codec, "allowed_token_ids")
    check_ids([entry.token_id for entry in order.sampling.logit_bias], door.codec, "logit_bias")
    generation = Generation(door, order)
    head = AnswerHead(
        answer_id=_answer_id(http, answer_format),
        created=int(time.time()),
        model=door.served_name,
        fingerprint=f"kvasir-{VERSION}",
    )
    if not body.stream:
        whole = whole_answer(generation, answer_format, head)
        return JSONResponse(await unless_client_leaves(http.receive, whole))
    include_usage = body.stream_options is not None and body.stream_options.include_usage
    return EventStream(frames(generation, answer_format, head, include_usage=include_usage))


def _terms(body: GenerationBody, http: Request) -> Terms:
    tenant: str = http.state.tenant
    return Terms(
        tenant=tenant,
        # Pages that two keys share would tell each, by how soon it is answered, what the other has asked.
        cache_salt=f"{tenant}/{body.cache_salt}" if tenant else body.cache_salt,
        priority=body.priority,
        cache_priority=body.cache_priority,
        deadline_s=body.deadline_s,
    )


def _answer_id(http: Request, answer_format: ChoiceFormat) -> str:
    return f"{answer_format.id_prefix}-{http.state.request_id}"


def _wire_id(http: Request, answer_format: ChoiceFormat) -> str:
    return f"{_answer_id(http, answer_format)}.{secrets.token_hex(4)}"


def _num_prompts(body: CompletionBody) -> int:
    is_one = isinstance(body.prompt, str) or (bool(body.prompt) and isinstance(body.prompt[0], int))
    return 1 if is_one else len(body.prompt)


def _model(house: House, door: FrontDoor) -> dict[str, Any]:
    return {
        "id": door.served_name,
        "object": "model",
        "created": house.created_at,
        "owned_by": "kvasir",
        "root": door.served_name,
        "parent": None,
        "max_model_len": door.context_tokens,
    }
