"""Routes for the people who run the cluster, and for tools: health, status, metrics, version, token counts."""

import asyncio
import time
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from kvasir_protocol.errors import InvalidRequest
from kvasir_router.front_door import VERSION, FrontDoor, House
from kvasir_router.links import ReplicaLink
from kvasir_router.openai.bodies import DetokenizeBody, TokenizeBody
from kvasir_router.openai.prompts import chat_prompt, check_ids
from kvasir_router.tokenise import TextCodec


def operations_routes(house: House) -> APIRouter:
    routes = APIRouter()

    @routes.get("/health")
    @routes.head("/health", include_in_schema=False)
    async def health() -> Response:
        """200 as soon as one replica is up: any role can serve whole requests of its model.

        "models_down": how many have none, also where others have. Their names are for those who have a key.
        """
        live = [len(door.fleet.live()) for door in house.doors]
        num_live = sum(live)
        phase = house.doors[0].fleet.view.phase
        status, num_down = "ok" if num_live else "unavailable", live.count(0)
        body = {"status": status, "phase": phase, "live": num_live, "models_down": num_down}
        return JSONResponse(body, 200 if num_live else 503, None if num_live else {"Retry-After": "1"})

    @routes.get("/version")
    async def version() -> dict[str, str]:
        return {"version": VERSION}

    @routes.get("/status")
    async def status() -> dict[str, Any]:
        view = house.doors[0].fleet.view  # of one moment, whichever model's part of it
        return {
            "model": ", ".join(door.served_name for door in house.doors),
            "version": VERSION,
            "view": {"version": view.version, "phase": view.phase},
            "max_model_len": house.context_tokens,
            "uptime_s": round(time.monotonic() - house.started_at, 3),
            "num_inflight": house.limit.num_streams,
            "replicas": [_replica(door, link) for door in house.doors for link in door.fleet.links],
        }

    @routes.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(house.registry), media_type=CONTENT_TYPE_LATEST)

    @routes.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> dict[str, Any]:
        door = house.door(body.model)
        tokens = await _tokens(door, body)
        return {"count": len(tokens), "max_model_len": door.context_tokens, "tokens": tokens}

    @routes.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> dict[str, str]:
        door = house.door(body.model)
        return {"prompt": await asyncio.to_thread(_text_of, body.tokens, door.codec)}

    return routes


def _text_of(token_ids: list[int], codec: TextCodec) -> str:
    check_ids(token_ids, codec, "tokens")
    return codec.decode(token_ids, skip_special_tokens=False)


async def _tokens(door: FrontDoor, body: TokenizeBody) -> list[int]:
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("send either prompt or messages", "prompt")
    if body.messages is not None:
        return list(await chat_prompt(body, door.codec, add_special_tokens=bool(body.add_special_tokens)))
    add_special_tokens = body.add_special_tokens is not False
    return await asyncio.to_thread(door.codec.encode, body.prompt or "", add_special_tokens=add_special_tokens)


def _replica(door: FrontDoor, link: ReplicaLink) -> dict[str, Any]:
    """stats and info are null while the replica has told none."""
    return {
        "id": link.replica_id,
        "model": door.served_name,
        "role": link.address.role,
        "endpoint": link.address.endpoint,
        "state": "up" if link.is_up else "down",
        "num_inflight": door.fleet.inflight[link.replica_id],
        "num_bad_frames": link.num_bad_frames,
        "info": asdict(link.info) if link.info else None,
        "stats": asdict(link.stats) if link.stats else None,
    }
