from pathlib import Path

import pytest

from kvasir_protocol.errors import CheckpointError
from kvasir_router.model_files import GenerationDefaults, read_text_settings
from tests.fakes.text_model import CHAT_TEMPLATE, write_text_model


def test_special_tokens_are_read_as_text_or_as_a_map_with_content(model_directory: Path) -> None:
    assert read_text_settings(model_directory).special_tokens == {
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }


def test_end_tokens_of_generation_config_come_before_those_of_config(model_directory: Path) -> None:
    assert read_text_settings(model_directory).eos_token_ids == (1, 2)


def test_single_end_token_of_config_is_the_fallback(tmp_path: Path) -> None:
    directory = write_text_model(tmp_path, config={"eos_token_id": 7}, generation_config={"eos_token_id": None})
    assert read_text_settings(directory).eos_token_ids == (7,)


def test_sampling_defaults_are_those_of_generation_config_without_max_new_tokens(tmp_path: Path) -> None:
    generation = {"temperature": 0.6, "top_k": 20, "max_new_tokens": 5, "do_sample": True, "top_p": None}
    directory = write_text_model(tmp_path, generation_config=generation)
    assert read_text_settings(directory).defaults == GenerationDefaults(temperature=0.6, top_k=20)


def test_sizes_of_a_nested_text_config_count(tmp_path: Path) -> None:
    nested = {"text_config": {"vocab_size": 9, "max_position_embeddings": 33}}
    settings = read_text_settings(write_text_model(tmp_path, config=nested))
    assert (settings.vocab_size, settings.context_tokens) == (9, 33)


def test_named_templates_are_read_from_a_list(tmp_path: Path) -> None:
    templates = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    directory = write_text_model(tmp_path, tokenizer_config={"chat_template": templates})
    assert read_text_settings(directory).chat_templates == {"default": "a", "tool_use": "b"}


def test_template_file_wins_over_the_one_in_tokenizer_config(tmp_path: Path) -> None:
    directory = write_text_model(tmp_path)
    assert read_text_settings(directory).chat_templates == {"default": CHAT_TEMPLATE}
    (directory / "chat_template.jinja").write_text("from the file")
    assert read_text_settings(directory).chat_templates == {"default": "from the file"}


def test_optional_files_may_be_missing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    settings = read_text_settings(tmp_path)
    assert settings.chat_templates == {}
    assert settings.context_tokens is None
    assert settings.defaults == GenerationDefaults()


def test_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        read_text_settings(tmp_path)


@pytest.mark.parametrize("content", ["not json", "[]"])
def test_file_that_holds_no_json_object_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_text_settings(tmp_path)
