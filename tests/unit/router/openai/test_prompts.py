import pytest

from kvasir_protocol.errors import InvalidRequest
from kvasir_router.openai.bodies import ChatBody, CompletionBody
from kvasir_router.openai.prompts import chat_prompt, check_ids, completion_prompts
from kvasir_router.tokenise import TextCodec

pytestmark = pytest.mark.anyio


async def prompts(prompt: object, codec: TextCodec) -> list[tuple[int, ...]]:
    return await completion_prompts(CompletionBody.model_validate({"prompt": prompt}), codec)


async def test_all_forms_of_a_prompt_become_ids(codec: TextCodec) -> None:
    fox, dog = tuple(codec.encode("fox")), tuple(codec.encode("dog"))
    assert await prompts("fox", codec) == [fox]
    assert await prompts(["fox", "dog"], codec) == [fox, dog]
    assert await prompts(list(fox), codec) == [fox]
    assert await prompts([list(fox), list(dog)], codec) == [fox, dog]


@pytest.mark.parametrize("prompt", ["", [], [""], [[]], ["fox", ""]])
async def test_empty_prompt_is_refused(codec: TextCodec, prompt: object) -> None:
    with pytest.raises(InvalidRequest, match="must not be empty") as caught:
        await prompts(prompt, codec)
    assert caught.value.field == "prompt"


@pytest.mark.parametrize("token_id", [-1, 10**6])
async def test_id_outside_the_vocabulary_is_named(codec: TextCodec, token_id: int) -> None:
    with pytest.raises(InvalidRequest, match=f"token id {token_id} "):
        await prompts([1, token_id], codec)


def test_last_id_of_the_vocabulary_is_valid(codec: TextCodec) -> None:
    check_ids([0, codec.vocab_size - 1], codec, "tokens")


async def test_chat_is_written_by_the_template(codec: TextCodec) -> None:
    body = ChatBody.model_validate({"messages": [{"role": "user", "content": "hi"}]})
    expected = codec.encode("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert await chat_prompt(body, codec) == tuple(expected)


async def test_generation_prompt_can_be_left_out(codec: TextCodec) -> None:
    body = ChatBody.model_validate({"messages": [{"role": "user", "content": "hi"}], "add_generation_prompt": False})
    assert await chat_prompt(body, codec) == tuple(codec.encode("<|im_start|>user\nhi<|im_end|>\n"))
