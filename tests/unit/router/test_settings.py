from pathlib import Path

import pytest

from kvasir_protocol.errors import ConfigError
from kvasir_protocol.view import ReplicaAddress
from kvasir_router.settings import RouterSettings, ServedModel, body_limit_bytes, parse_replicas, read_api_keys


def test_replicas_are_named_by_role_and_order() -> None:
    addresses = parse_replicas("prefill@tcp://a:1, decode@tcp://b:2,decode@tcp://[::1]:3")
    assert [(address.replica_id, address.role, address.endpoint) for address in addresses] == [
        ("prefill-0", "prefill", "tcp://a:1"),
        ("decode-0", "decode", "tcp://b:2"),
        ("decode-1", "decode", "tcp://[::1]:3"),
    ]


@pytest.mark.parametrize("text", ["", "tcp://a:1", "draft@tcp://a:1", "mixed@a:1", "mixed@tcp://a", "mixed@ipc:///x"])
def test_replica_of_another_form_is_refused_with_the_right_one(text: str) -> None:
    with pytest.raises(ConfigError, match="ROLE@tcp://HOST:PORT"):
        parse_replicas(text)


def test_api_keys_are_lines_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# the team's\nfirst\n\n  second  \n")
    assert read_api_keys(path) == ("first", "second")


@pytest.mark.parametrize("content", ["", "# nothing\n"])
def test_file_without_keys_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys"
    path.write_text(content)
    with pytest.raises(ConfigError, match="no API key"):
        read_api_keys(path)


def test_missing_key_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        read_api_keys(tmp_path / "nowhere")


def settings(replicas: tuple[ReplicaAddress, ...], controller: str | None, max_inflight: int = 1) -> RouterSettings:
    return RouterSettings(
        models=(ServedModel(Path(), "m"),),
        secret=b"",
        replicas=replicas,
        controller_endpoint=controller,
        max_inflight_requests=max_inflight,
    )


@pytest.mark.parametrize("both", [True, False])
def test_replicas_come_from_one_source(*, both: bool) -> None:
    replicas = parse_replicas("mixed@tcp://a:1") if both else ()
    with pytest.raises(ConfigError, match="either --replicas or --controller"):
        settings(replicas, "tcp://c:1" if both else None)


def test_replicas_given_by_hand_serve_one_model() -> None:
    models = (ServedModel(Path(), "a"), ServedModel(Path(), "b"))
    with pytest.raises(ConfigError, match=r"which of the models \['a', 'b'\] .* a router for each"):
        RouterSettings(models=models, secret=b"", replicas=parse_replicas("mixed@tcp://a:1"))
    assert RouterSettings(models=models, secret=b"", controller_endpoint="tcp://c:1").replicas == ()


def test_router_must_take_at_least_one_stream() -> None:
    with pytest.raises(ConfigError, match="--max-inflight must be at least 1"):
        settings((), "tcp://c:1", max_inflight=0)


def test_bodies_may_weigh_what_a_full_context_of_ids_does() -> None:
    ids_as_json = len("[" + ", ".join(["151643"] * 131_072) + "]")
    assert ids_as_json < body_limit_bytes(131_072) < 8 * 2**20


def test_an_unlimited_context_does_not_make_bodies_unlimited() -> None:
    assert body_limit_bytes(2**31) == 32 * 2**20
