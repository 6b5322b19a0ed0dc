"""End tokens and suggested sampling, from whichever file names them."""

import json
from pathlib import Path

import pytest

from kvasir_protocol.errors import CheckpointError
from kvasir_workers.model.checkpoint import GenerationDefaults, read_generation_defaults


def _write(directory: Path, config: dict[str, object], generation: dict[str, object] | None = None) -> Path:
    (directory / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory


def test_suggestions_are_read(tmp_path: Path) -> None:
    # As the hub holds it: Qwen/Qwen2.5-0.5B-Instruct.
    suggested: dict[str, object] = {
        "do_sample": True,
        "eos_token_id": [151645, 151643],
        "repetition_penalty": 1.1,
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
    }
    assert read_generation_defaults(_write(tmp_path, {"eos_token_id": 151645}, suggested)) == GenerationDefaults(
        eos_token_ids=(151645, 151643),
        do_sample=True,
        temperature=0.7,
        top_p=0.8,
        top_k=20,
        min_p=None,
        repetition_penalty=1.1,
    )


@pytest.mark.parametrize("generation", [None, {}, {"eos_token_id": None}])
def test_config_names_the_end_token_where_generation_config_does_not(
    tmp_path: Path, generation: dict[str, object] | None
) -> None:
    defaults = read_generation_defaults(_write(tmp_path, {"eos_token_id": 7}, generation))
    assert defaults.eos_token_ids == (7,)
    assert defaults.temperature is None


def test_a_model_without_end_token_has_none(tmp_path: Path) -> None:
    assert read_generation_defaults(_write(tmp_path, {})).eos_token_ids == ()


@pytest.mark.parametrize(
    ("key", "value"), [("eos_token_id", "</s>"), ("eos_token_id", [True]), ("temperature", "hot"), ("do_sample", 1)]
)
def test_ill_typed_suggestions_are_named(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=f'generation_config.json: "{key}"'):
        read_generation_defaults(_write(tmp_path, {}, {key: value}))
