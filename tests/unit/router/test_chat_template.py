from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from kvasir_protocol.errors import CheckpointError, InvalidRequest
from kvasir_router.chat_template import ChatTemplate
from kvasir_router.tokenise import TextCodec
from tests.fakes.text_model import CHAT_TEMPLATE

NAMESPACED = """
{%- set ns = namespace(count=0) %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message.content is none %}{% continue %}{% endif %}
    {%- if loop.index0 > 5 %}{% break %}{% endif %}
    {%- set ns.count = ns.count + 1 %}
    {{- '<|' ~ message['role'] ~ '|>' + (message['content'] | trim) + '\\n' }}
{%- endfor %}
{{- ns.count }}{{ eos_token }}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think></think>' }}
    {%- endif %}
{%- endif %}
"""

WITH_TAGS = """
{% for message in messages %}
{% if message.role == 'assistant' %}
{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}
{% else %}
{{ message | tojson }} {{ {'b': '<é>', 'a': [1, 2]} | tojson(indent=2, sort_keys=true) }}
{% endif %}
{% endfor %}
{{ strftime_now('%Y') | length }}
"""

CONVERSATION = [
    {"role": "system", "content": "Be brief & <kind>."},
    {"role": "user", "content": "  What's “this”? 😀 "},
    {"role": "assistant", "content": "A test."},
    {"role": "user", "content": "Thanks"},
]


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, NAMESPACED, WITH_TAGS])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("variables", [{}, {"enable_thinking": False}])
def test_text_is_that_of_transformers(
    model_directory: Path, template: str, *, add_generation_prompt: bool, variables: dict[str, Any]
) -> None:
    theirs = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_file=str(model_directory / "tokenizer.json"), bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    expected = theirs.apply_chat_template(
        CONVERSATION,
        chat_template=template,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        **variables,
    )
    ours = ChatTemplate({"default": template}, {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})
    assert ours.render(CONVERSATION, add_generation_prompt=add_generation_prompt, variables=variables) == expected


def test_template_for_tools_is_taken_when_there_are_tools() -> None:
    template = ChatTemplate({"default": "plain", "tool_use": "{{ tools[0].name }}"}, {})
    assert template.render(CONVERSATION) == "plain"
    assert template.render(CONVERSATION, tools=[{"name": "clock"}]) == "clock"


def test_model_without_a_template_says_what_to_use_instead() -> None:
    with pytest.raises(InvalidRequest, match="/v1/completions") as caught:
        ChatTemplate({}, {}).render(CONVERSATION)
    assert caught.value.field == "messages"


def test_model_without_a_default_template_names_those_it_has() -> None:
    with pytest.raises(InvalidRequest, match="named rag"):
        ChatTemplate({"rag": "x"}, {}).render(CONVERSATION)


def test_refusal_of_the_template_is_the_callers_mistake(codec: TextCodec) -> None:
    with pytest.raises(InvalidRequest, match="unknown role tool") as caught:
        codec.render_chat([{"role": "tool", "content": "hocus"}])
    assert caught.value.field == "messages"


@pytest.mark.parametrize("role", ["wizard", "", "User", "function", 5, None])
def test_unknown_role_is_named_with_the_known_ones(codec: TextCodec, role: object) -> None:
    with pytest.raises(InvalidRequest, match="is no role; use one of developer, system, user") as caught:
        codec.render_chat([{"role": "user", "content": "x"}, {"role": role, "content": "hocus"}])
    assert caught.value.field == "messages[1].role"


@pytest.mark.parametrize("message", [{"role": "user"}, {"role": "user", "content": None}])
def test_message_that_the_template_stumbles_over_is_the_callers_mistake(codec: TextCodec, message: Any) -> None:
    with pytest.raises(InvalidRequest, match="chat template refuses"):
        codec.render_chat([message])


def test_message_without_a_role_is_the_callers_mistake(codec: TextCodec) -> None:
    with pytest.raises(InvalidRequest, match=r"messages\[0\]\.role: None is no role"):
        codec.render_chat([{"content": "x"}])


def test_template_cannot_reach_python() -> None:
    template = ChatTemplate({"default": "{{ messages.__class__.__mro__ }}"}, {})
    with pytest.raises(InvalidRequest, match="unsafe"):
        template.render(CONVERSATION)


def test_broken_template_is_found_at_load() -> None:
    with pytest.raises(CheckpointError, match="'default', line 1"):
        ChatTemplate({"default": "{% if %}"}, {})
