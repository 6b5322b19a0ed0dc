"""Whatever a caller sends, the answer is a 4xx that names the field, and no replica hears of it."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from kvasir_protocol.messages import Submit
from tests.fakes.serving import MakeSettings, serving
from tests.integration.router.conftest import MakeReplica

pytestmark = pytest.mark.anyio

USER = [{"role": "user", "content": "hi"}]

CHAT: list[tuple[dict[str, Any], str]] = [
    ({}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": [{"content": "hi"}]}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages"),
    ({"messages": [{"role": "tool", "content": "refused by the template"}]}, "messages"),
    ({"messages": [*USER, {"role": "wizard", "content": "hi"}]}, "messages[1].role"),
    ({"messages": [{"role": "", "content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
    ({"messages": [{"role": "user", "content": "word " * 2000}]}, "prompt"),
    ({"messages": USER, "max_tokens": 5000}, "max_tokens"),
    ({"messages": USER, "max_tokens": 0}, "max_tokens"),
    ({"messages": USER, "max_tokens": -1}, "max_tokens"),
    ({"messages": USER, "max_tokens": 1.5}, "max_tokens"),
    ({"messages": USER, "max_tokens": 10**30}, "max_tokens"),
    ({"messages": USER, "max_tokens": 5, "min_tokens": 6}, "min_tokens"),
    ({"messages": USER, "temperature": -0.1}, "temperature"),
    ({"messages": USER, "temperature": float("nan")}, "temperature"),
    ({"messages": USER, "temperature": float("inf")}, "temperature"),
    ({"messages": USER, "temperature": "hot"}, "temperature"),
    ({"messages": USER, "top_p": 0}, "top_p"),
    ({"messages": USER, "top_p": 1.1}, "top_p"),
    ({"messages": USER, "top_k": -2}, "top_k"),
    ({"messages": USER, "min_p": 2}, "min_p"),
    ({"messages": USER, "seed": -1}, "seed"),
    ({"messages": USER, "seed": 2**63}, "seed"),
    ({"messages": USER, "n": 0}, "n"),
    ({"messages": USER, "n": 129}, "n"),
    ({"messages": USER, "n": 2, "temperature": 0}, "n"),
    ({"messages": USER, "stop": ""}, "stop"),
    ({"messages": USER, "stop": [1]}, "stop"),
    ({"messages": USER, "stop_token_ids": ["x"]}, "stop_token_ids"),
    ({"messages": USER, "stop_token_ids": [-1]}, "stop_token_ids"),
    ({"messages": USER, "logit_bias": {"1": 101}}, "logit_bias"),
    ({"messages": USER, "logit_bias": {"x": 1}}, "logit_bias"),
    ({"messages": USER, "logit_bias": {str(10**9): 1}}, "logit_bias"),
    ({"messages": USER, "allowed_token_ids": [10**9]}, "allowed_token_ids"),
    ({"messages": USER, "bad_words": [" "]}, "bad_words"),
    ({"messages": USER, "bad_words": "bad"}, "bad_words"),
    ({"messages": USER, "echo": True}, "echo"),
    ({"messages": USER, "presence_penalty": 3}, "presence_penalty"),
    ({"messages": USER, "frequency_penalty": -3}, "frequency_penalty"),
    ({"messages": USER, "repetition_penalty": 0}, "repetition_penalty"),
    ({"messages": USER, "logprobs": 5}, "logprobs"),
    ({"messages": USER, "top_logprobs": 3}, "top_logprobs"),
    ({"messages": USER, "stream": 1}, "stream"),
    ({"messages": USER, "stream_options": {"include_usage": True}}, "stream_options"),
    ({"messages": USER, "model": 5}, "model"),
    ({"messages": USER, "priority": 2**70}, "priority"),
    ({"messages": USER, "cache_priority": 101}, "cache_priority"),
    ({"messages": USER, "cache_priority": -1}, "cache_priority"),
    ({"messages": USER, "deadline_s": 0}, "deadline_s"),
    ({"messages": USER, "deadline_s": 1e9}, "deadline_s"),
    ({"messages": USER, "tools": [{"type": "function"}]}, "tools"),
    ({"messages": USER, "response_format": {"type": "structural_tag"}}, "response_format"),
    ({"messages": USER, "response_format": {"type": "json_schema"}}, "response_format"),
    (
        {"messages": USER, "response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
        "response_format",
    ),
    ({"messages": USER, "structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
    ({"messages": USER, "structured_outputs": {"regex": "a" * 70_000}}, "structured_outputs"),
    ({"messages": USER, "structured_outputs": {"regex": "a"}, "ignore_eos": True}, "ignore_eos"),
    ({"messages": USER, "guided_json": {}}, "guided_json"),
]

COMPLETIONS: list[tuple[dict[str, Any], str]] = [
    ({}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [10**9]}, "prompt"),
    ({"prompt": ["a", 1]}, "prompt"),
    ({"prompt": {"text": "a"}}, "prompt"),
    ({"prompt": [5] * 1000}, "prompt"),
    ({"prompt": ["a"] * 2000}, "prompt"),
    ({"prompt": ["a"] * 1000, "n": 2, "temperature": 1}, "n"),
    ({"prompt": "a" * 300_000}, "prompt"),
    ({"prompt": "a", "stop": ["b"] * 65}, "stop"),
    ({"prompt": "a", "stop": "b" * 513}, "stop"),
    ({"prompt": "a", "stop_token_ids": [1] * 65}, "stop_token_ids"),
    ({"prompt": "a", "logprobs": 21}, "logprobs"),
    ({"prompt": "a", "logprobs": -1}, "logprobs"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ({"prompt": "a", "echo": True, "stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
    ({"prompt": "a", "prompt_logprobs": 21}, "prompt_logprobs"),
    ({"prompt": [10**9], "echo": True}, "prompt"),
    ({"prompt": "a", "suffix": "b"}, "suffix"),
    ({"prompt": "a", "best_of": 3, "stream": True}, "best_of"),
    ({"prompt": "a", "best_of": 1, "n": 2}, "best_of"),
    ({"prompt": "a", "best_of": 2, "temperature": 0}, "best_of"),
]

TOKENS: list[tuple[str, dict[str, Any], str]] = [
    ("/tokenize", {}, "prompt"),
    ("/tokenize", {"prompt": "a", "messages": USER}, "prompt"),
    ("/tokenize", {"prompt": "\udc00"}, "prompt"),
    ("/detokenize", {"tokens": [10**9]}, "tokens"),
    ("/detokenize", {"tokens": "a"}, "tokens"),
    ("/detokenize", {}, "tokens"),
]

CASES = [
    *(("/v1/chat/completions", body, field) for body, field in CHAT),
    *(("/v1/completions", body, field) for body, field in COMPLETIONS),
    *TOKENS,
]

RAW_BODIES = [
    b"",
    b"{",
    b"[]",
    b'"text"',
    b"null",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
]


WRONG_ROUTES = [
    ("GET", "/nowhere", 404),
    ("GET", "/", 404),
    ("GET", "/docs", 404),
    ("POST", "/v1/embeddings", 404),
    ("GET", "/v1/models/another", 404),
    ("GET", "/v1/completions", 405),
    ("POST", "/health", 405),
    ("DELETE", "/v1/models", 405),
]


async def test_bad_fields_are_named_and_reach_no_replica(
    make_replica: MakeReplica, make_settings: Callable[..., MakeSettings]
) -> None:
    mixed = make_replica("mixed-0")
    async with serving(make_settings(), mixed) as server:
        for path, body, field in CASES:
            content = json.dumps(body)
            headers = {"Content-Type": "application/json"}
            response = await server.client.post(path, content=content, headers=headers)
            assert response.status_code == 400, (path, content[:100], response.text)
            error = response.json()["error"]
            assert error["type"] == "invalid_request_error", content[:100]
            assert error["param"] == field, (content[:100], error)
            assert error["message"], content[:100]
        assert not mixed.got(Submit)
        assert (await server.client.get("/status")).json()["num_inflight"] == 0


async def test_bodies_that_are_no_json_object_are_refused(
    make_replica: MakeReplica, make_settings: Callable[..., MakeSettings]
) -> None:
    async with serving(make_settings(), make_replica("mixed-0")) as server:
        for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
            for content in RAW_BODIES:
                headers = {"Content-Type": "application/json"}
                response = await server.client.post(path, content=content, headers=headers)
                assert response.status_code == 400, (path, content[:20], response.text)
                assert response.json()["error"]["type"] == "invalid_request_error"
            form = await server.client.post(path, data={"prompt": "a"})
            assert form.status_code == 400
            assert "Content-Type: application/json" in form.json()["error"]["message"]


async def test_wrong_routes_are_answered_in_openais_shape(
    make_replica: MakeReplica, make_settings: Callable[..., MakeSettings]
) -> None:
    async with serving(make_settings(), make_replica("mixed-0")) as server:
        for method, path, status in WRONG_ROUTES:
            response = await server.client.request(method, path)
            assert response.status_code == status, path
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}
