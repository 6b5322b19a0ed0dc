"""Chat messages to the model's own prompt text, as transformers' apply_chat_template writes it."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kvasir_protocol.errors import CheckpointError, InvalidRequest

ROLES = ("developer", "system", "user", "assistant", "tool")
"""Those of OpenAI's API. Most templates write any word into the prompt, which a model then never saw in training."""


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's words for training; here its body is text like any other."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 reads a plain class attribute)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML characters, which models were not trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _check_roles(messages: Sequence[Mapping[str, Any]]) -> None:
    for index, message in enumerate(messages):
        if (role := message.get("role")) not in ROLES:
            field = f"messages[{index}].role"
            raise InvalidRequest(f"{field}: {role!r:.60} is no role; use one of {', '.join(ROLES)}", field)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class ChatTemplate:
    """A model's templates, compiled once; render() may be called from several threads."""

    def __init__(self, templates: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        """Raises CheckpointError for a template that is not valid Jinja."""
        environment = _environment()
        self._special_tokens = dict(special_tokens)
        self._templates: dict[str, jinja2.Template] = {}
        for name, source in templates.items():
            try:
                self._templates[name] = environment.from_string(source)
            except jinja2.TemplateSyntaxError as error:
                raise CheckpointError(f"chat template {name!r}, line {error.lineno}: {error.message}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt's text. variables are handed to the template under their names.

        Raises InvalidRequest for an unknown role, naming it as "messages[0].role", and for field "messages" when there
        is no template or it refuses the messages.
        """
        _check_roles(messages)
        template = self._choose(has_tools=bool(tools))
        values = {
            **self._special_tokens,
            **(variables or {}),
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return template.render(values)
        except Exception as error:
            # A template is the model author's program: whatever it raises, these messages made it do so.
            raise InvalidRequest(f"the model's chat template refuses the messages: {error}", "messages") from error

    def _choose(self, *, has_tools: bool) -> jinja2.Template:
        names = ("tool_use", "default") if has_tools else ("default",)
        for name in names:
            if name in self._templates:
                return self._templates[name]
        if self._templates:
            known = ", ".join(sorted(self._templates))
            raise InvalidRequest(f"the model has chat templates named {known}, but no default one", "messages")
        raise InvalidRequest("the model has no chat template; use /v1/completions with a prompt", "messages")
