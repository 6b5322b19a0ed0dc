"""Request bodies. Fields that nobody here knows are ignored; options that would change the answer are refused."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from kvasir_protocol.errors import InvalidRequest
from kvasir_protocol.request import MAX_CACHE_PRIORITY


def _without_lone_surrogates(text: str) -> str:
    """JSON can spell half of a surrogate pair, UTF-8 and the wire can't."""
    if not text.isascii():
        text.encode()  # UnicodeEncodeError is a ValueError, which pydantic turns into a finding
    return text


MAX_PROMPTS = 1024
MAX_MESSAGES = 4096
"""Far beyond what anybody serves at a time or a context holds; more is refused before time is spent on it."""

MAX_WAIT_S = 3600.0

Text = Annotated[str, AfterValidator(_without_lone_surrogates)]
TokenIds = list[int]

UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "audio": (),
    "best_of": (1,),
    "chat_template": (),
    "continue_final_message": (False,),
    "documents": ([],),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "modalities": (["text"],),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "suffix": ("",),
    "thinking_token_budget": (),
    "tool_choice": ("none",),
    "tools": ([],),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "web_search_options": (),
}
"""Options by name, each with the values that ask for nothing."""


class Body(BaseModel):
    """Strict: a number in quotes is a mistake, not a number."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())

    model: str | None = None

    def refuse_unsupported(self) -> None:
        """Raise InvalidRequest naming the first option that can't be honoured."""
        for name, value in (self.model_extra or {}).items():
            if name in UNSUPPORTED and value is not None and value not in UNSUPPORTED[name]:
                if name.startswith("guided_"):
                    option = name.removeprefix("guided_")
                    raise InvalidRequest(f"{name} is not supported; send structured_outputs: {{{option}: …}}", name)
                raise InvalidRequest(f"{name} is not supported yet; leave it out", name)


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool = False


class GenerationBody(Body):
    """What completions and chat have in common; None means the model's default."""

    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: Text | list[Text] | None = None
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: TokenIds | None = None
    bad_words: list[Text] | None = None
    return_token_ids: bool = False
    cache_salt: Text = ""
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
    cache_priority: Annotated[int, Field(ge=0, le=MAX_CACHE_PRIORITY)] = 0
    deadline_s: Annotated[float, Field(gt=0, le=MAX_WAIT_S)] | None = None


class CompletionBody(GenerationBody):
    prompt: (
        Text
        | Annotated[list[Text], Field(max_length=MAX_PROMPTS)]
        | TokenIds
        | Annotated[list[TokenIds], Field(max_length=MAX_PROMPTS)]
    )
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    add_special_tokens: bool = True


class TextPart(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """Other fields (name, tool_call_id, …) are handed to the model's template as they are."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: str
    content: str | list[TextPart] | None = None

    def for_template(self) -> dict[str, Any]:
        """Text parts joined by newlines: most templates take only a string."""
        content = self.content
        if isinstance(content, list):
            content = "\n".join(part.text for part in content)
        return {"role": self.role, "content": content, **(self.model_extra or {})}


Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]


class ChatBody(GenerationBody):
    messages: Messages
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None


class TokenizeBody(Body):
    """Either prompt or messages."""

    prompt: Text | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeBody(Body):
    tokens: TokenIds
