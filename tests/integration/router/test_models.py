"""Several models behind one port."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from kvasir_protocol import metrics as names
from kvasir_protocol.view import ReplicaAddress
from kvasir_router.settings import RouterSettings, ServedModel
from tests.fakes.replica import FakeReplica
from tests.fakes.serving import SECRET, Serving, serving
from tests.integration.router.conftest import MakeReplica

pytestmark = pytest.mark.anyio

MESSAGES = [{"role": "user", "content": "hi"}]
LARGE, SMALL = "large", "org/small"


@pytest.fixture
def replicas(make_replica: MakeReplica) -> tuple[FakeReplica, FakeReplica]:
    """One of each model, in their order."""
    return make_replica("mixed-0"), make_replica("mixed-1")


@pytest.fixture
async def server(model_directory: Path, replicas: tuple[FakeReplica, FakeReplica]) -> AsyncIterator[Serving]:
    def make_settings(addresses: tuple[ReplicaAddress, ...]) -> RouterSettings:
        return RouterSettings(
            models=(ServedModel(model_directory, LARGE), ServedModel(model_directory, SMALL)),
            secret=SECRET,
            replicas=tuple(replace(each, model=name) for each, name in zip(addresses, (LARGE, SMALL), strict=True)),
        )

    async with serving(make_settings, *replicas) as server:
        yield server


async def test_all_models_are_listed_and_can_be_asked_for_by_name(server: Serving) -> None:
    listed = (await server.client.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == [LARGE, SMALL]
    assert (await server.client.get(f"/v1/models/{SMALL}")).json()["id"] == SMALL
    assert (await server.client.get("/v1/models/other")).status_code == 404


@pytest.mark.parametrize("model", [LARGE, SMALL])
async def test_request_goes_to_a_replica_of_its_model(
    server: Serving, replicas: tuple[FakeReplica, FakeReplica], model: str
) -> None:
    for _ in range(3):
        answer = await server.client.post("/v1/chat/completions", json={"model": model, "messages": MESSAGES})
        assert (answer.status_code, answer.json()["model"]) == (200, model)
    assert [replica.num_steps > 0 for replica in replicas] == [model == LARGE, model == SMALL]


async def test_unknown_model_is_not_found_and_the_known_ones_are_named(server: Serving) -> None:
    answer = await server.client.post("/v1/completions", json={"model": "other", "prompt": "a"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "model")
    assert "'large', 'org/small' are" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES}),
        ("/v1/completions", {"prompt": "a"}),
        ("/tokenize", {"prompt": "a"}),
    ],
)
async def test_request_that_names_no_model_is_told_to(server: Serving, path: str, body: dict[str, object]) -> None:
    answer = await server.client.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")


async def test_model_without_a_replica_is_unavailable_while_the_other_answers(
    server: Serving, replicas: tuple[FakeReplica, FakeReplica]
) -> None:
    await replicas[1].stop()
    await server.until_live(1)
    asked = {name: {"model": name, "messages": MESSAGES} for name in (LARGE, SMALL)}
    assert (await server.client.post("/v1/chat/completions", json=asked[SMALL])).status_code == 503
    assert (await server.client.post("/v1/chat/completions", json=asked[LARGE])).status_code == 200


async def test_health_tells_which_models_can_be_served(
    server: Serving, replicas: tuple[FakeReplica, FakeReplica]
) -> None:
    assert (await server.client.get("/health")).json()["models_down"] == 0
    await replicas[1].stop()
    await server.until_live(1)
    answer = await server.client.get("/health")
    assert (answer.status_code, answer.json()["models_down"]) == (200, 1)
    await replicas[0].stop()
    await server.until_live(0)
    answer = await server.client.get("/health")
    assert (answer.status_code, answer.json()["models_down"]) == (503, 2)


async def test_status_and_metrics_tell_models_apart(server: Serving) -> None:
    await server.client.post("/v1/chat/completions", json={"model": SMALL, "messages": MESSAGES})
    status = (await server.client.get("/status")).json()
    assert status["model"] == "large, org/small"
    assert [(replica["id"], replica["model"]) for replica in status["replicas"]] == [
        ("mixed-0", LARGE),
        ("mixed-1", SMALL),
    ]
    lines = (await server.client.get("/metrics")).text.splitlines()
    finished = [line for line in lines if line.startswith(f"{names.REQUEST_SUCCESS}_total")]
    assert [f'model_name="{SMALL}"' in line for line in finished] == [True]
