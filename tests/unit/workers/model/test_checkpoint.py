"""End tokens, from whichever file names them."""

import json
from pathlib import Path

import pytest

from kvasir_protocol.errors import CheckpointError
from kvasir_workers.model.checkpoint import read_eos_token_ids


def _write(directory: Path, config: dict[str, object], generation: dict[str, object] | None = None) -> Path:
    (directory / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory


def test_generation_config_names_the_end_tokens(tmp_path: Path) -> None:
    directory = _write(tmp_path, {"eos_token_id": 151645}, {"eos_token_id": [151645, 151643], "temperature": 0.7})
    assert read_eos_token_ids(directory) == (151645, 151643)


@pytest.mark.parametrize("generation", [None, {}, {"eos_token_id": None}])
def test_config_names_the_end_token_where_generation_config_does_not(
    tmp_path: Path, generation: dict[str, object] | None
) -> None:
    assert read_eos_token_ids(_write(tmp_path, {"eos_token_id": 7}, generation)) == (7,)


def test_a_model_without_end_token_has_none(tmp_path: Path) -> None:
    assert read_eos_token_ids(_write(tmp_path, {})) == ()


@pytest.mark.parametrize("value", ["</s>", [True], -1])
def test_ill_typed_end_tokens_are_named(tmp_path: Path, value: object) -> None:
    with pytest.raises(CheckpointError, match=r'generation_config\.json: "eos_token_id"'):
        read_eos_token_ids(_write(tmp_path, {}, {"eos_token_id": value}))
