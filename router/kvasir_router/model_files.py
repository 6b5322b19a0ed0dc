"""What a model directory says about text: special tokens, chat templates, end tokens, sampling defaults."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvasir_protocol.errors import CheckpointError


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """Sampling values for callers who name none; fields and neutral values as in SamplingParams."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSettings:
    """special_tokens: by the names templates use, such as bos_token. chat_templates: by name, most often "default".

    context_tokens and vocab_size are None where config.json is silent.
    """

    special_tokens: Mapping[str, str]
    chat_templates: Mapping[str, str]
    eos_token_ids: tuple[int, ...]
    defaults: GenerationDefaults
    context_tokens: int | None
    vocab_size: int | None


def read_text_settings(directory: Path) -> TextSettings:
    """Read config.json, generation_config.json, tokenizer_config.json and the template files.

    Only config.json must be there. Raises CheckpointError naming the file that is missing or not JSON.
    """
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"{directory} is no model directory: config.json is missing")
    config = _read_json(directory / "config.json")
    text_config = config.get("text_config") or config
    generation = _read_json(directory / "generation_config.json")
    tokenizer_config = _read_json(directory / "tokenizer_config.json")
    return TextSettings(
        special_tokens=_special_tokens({**_read_json(directory / "special_tokens_map.json"), **tokenizer_config}),
        chat_templates=_chat_templates(directory, tokenizer_config.get("chat_template")),
        eos_token_ids=_id_tuple(generation.get("eos_token_id")) or _id_tuple(text_config.get("eos_token_id")),
        defaults=_generation_defaults(generation),
        context_tokens=text_config.get("max_position_embeddings"),
        vocab_size=text_config.get("vocab_size"),
    )


def _read_json(path: Path) -> Mapping[str, Any]:
    """The map in a file, or an empty one if there is no such file."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"can't read {path}: {error}") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(document).__name__}")
    return document


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Entries such as "bos_token", whose value is the token's text or a map with it under "content"."""
    tokens = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            tokens[name] = text
    return tokens


def _chat_templates(directory: Path, in_config: object) -> dict[str, str]:
    """Template files win over tokenizer_config.json, as in transformers."""
    templates: dict[str, str] = {}
    if isinstance(in_config, str):
        templates["default"] = in_config
    elif isinstance(in_config, list):
        templates.update({entry["name"]: entry["template"] for entry in in_config})
    if (directory / "chat_template.jinja").is_file():
        templates["default"] = (directory / "chat_template.jinja").read_text(encoding="utf-8")
    for path in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = path.read_text(encoding="utf-8")
    return templates


def _id_tuple(value: object) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,)
    return tuple(value) if isinstance(value, list) else ()


def _generation_defaults(generation: Mapping[str, Any]) -> GenerationDefaults:
    """The values that the file names, whatever its do_sample says, as in vLLM."""
    named = {name: generation.get(name) for name in GenerationDefaults.__dataclass_fields__}
    return GenerationDefaults(**{name: value for name, value in named.items() if value is not None})
