"""From an HTTP request through router, prefill replica and decode replica to the text, with the demo model."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from kvasir import LLM, SamplingParams
from kvasir.demo import DEMO_MODEL_NAME
from tests.integration.stack.conftest import PAGE_BYTES, Stack

QUESTION = "What is a KV cache?"
LONG_TEXT = " ".join(f"Tell me of page {number}." for number in range(120))


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(dtype="float32")


def complete(stack: Stack, prompt: str | list[int], **options: Any) -> dict[str, Any]:
    body = {"model": DEMO_MODEL_NAME, "prompt": prompt, "temperature": 0, "max_tokens": 24} | options
    response = httpx.post(f"{stack.url}/v1/completions", json=body, timeout=60)
    response.raise_for_status()
    answer: dict[str, Any] = response.json()
    return answer


def offline_chat(llm: LLM, question: str) -> str:
    sampling = SamplingParams(temperature=0, max_tokens=100)
    (output,) = llm.chat([{"role": "user", "content": question}], sampling, use_tqdm=False)
    return output.outputs[0].text


def test_streamed_answer_is_that_of_the_engine_alone(stack: Stack, llm: LLM) -> None:
    assert "".join(stack.stream_chat(QUESTION)) == offline_chat(llm, QUESTION)


def test_prefill_is_counted_on_one_replica_decode_on_the_other(own_stack: Stack) -> None:
    def totals() -> dict[str, float]:
        return {
            "prefilled": own_stack.metric("kvasir:prefill_tokens_computed_total", role="prefill"),
            "prefilled by decode": own_stack.metric("kvasir:prefill_tokens_computed_total", role="decode"),
            "first tokens": own_stack.metric("vllm:generation_tokens_total", role="prefill"),
            "decoded": own_stack.metric("vllm:generation_tokens_total", role="decode"),
            "bytes": own_stack.metric("kvasir:handover_bytes_total", direction="pushed"),
        }

    usage = complete(own_stack, "The first prompt of all", max_tokens=8, ignore_eos=True)["usage"]
    # Each replica tells its totals twice a second: ask until both know of the answer that is here already.
    while totals()["decoded"] < 7 or totals()["first tokens"] < 1:
        pass
    num_prompt_tokens = usage["prompt_tokens"]
    assert totals() == {
        "prefilled": num_prompt_tokens,
        "prefilled by decode": 0,
        "first tokens": 1,
        "decoded": 7,
        "bytes": -(-num_prompt_tokens // 16) * PAGE_BYTES,
    }


def test_repeated_long_prompt_is_found_in_the_cache(stack: Stack) -> None:
    """Also when the answer ends with its first token, which the decode replica then has no part in."""
    first, second = (complete(stack, LONG_TEXT) for _ in range(2))
    num_tokens = first["usage"]["prompt_tokens"]
    assert second["choices"][0]["text"] == first["choices"][0]["text"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == num_tokens - 1


def test_choices_compute_their_prompt_once_but_for_less_than_a_page_each(own_stack: Stack) -> None:
    answer = complete(own_stack, QUESTION * 6, n=8, temperature=1.0, max_tokens=2, ignore_eos=True)
    # Each replica tells its totals twice a second: ask until both know of the answer that is here already.
    while own_stack.metric("vllm:generation_tokens_total") < 8 * 2:
        pass
    num_tokens = answer["usage"]["prompt_tokens"]
    assert num_tokens > 2 * 16
    computed = own_stack.metric("kvasir:prefill_tokens_computed_total")
    assert num_tokens <= computed <= num_tokens + 7 * max(1, num_tokens % 16)


def test_mixed_requests_at_once_give_the_tokens_of_one_at_a_time(stack: Stack) -> None:
    def ask(number: int) -> tuple[str, list[float]]:
        options = {"temperature": 0.8, "top_p": 0.9, "seed": number} if number % 2 else {}
        answer = complete(stack, LONG_TEXT[number * 40 : number * 80 + 7], logprobs=0, ignore_eos=True, **options)
        (choice,) = answer["choices"]
        return choice["text"], choice["logprobs"]["token_logprobs"]

    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(ask, range(32)))
    alone = [ask(number) for number in range(32)]
    assert [text for text, _ in together] == [text for text, _ in alone]
    for (_, ours), (_, theirs) in zip(together, alone, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_logprobs_and_choices_are_those_of_the_engine_alone(stack: Stack, llm: LLM) -> None:
    sampling = SamplingParams(temperature=1.0, top_p=1.0, seed=7, n=2, max_tokens=10, logprobs=2)
    served = complete(stack, "Kvasir is", temperature=1.0, top_p=1.0, seed=7, n=2, max_tokens=10, logprobs=2)["choices"]
    (offline,) = llm.generate("Kvasir is", sampling, use_tqdm=False)
    assert [choice["text"] for choice in served] == [output.text for output in offline.outputs]
    for choice, output in zip(served, offline.outputs, strict=True):
        expected = [found[token].logprob for found, token in zip(output.logprobs or [], output.token_ids, strict=True)]
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(expected, abs=1e-4)


def test_stop_string_cuts_the_answer(stack: Stack) -> None:
    whole = "".join(stack.stream_chat(QUESTION))
    stop = whole.split()[3]
    assert "".join(stack.stream_chat(QUESTION, stop=[stop])) == whole[: whole.index(stop)]


def test_client_that_leaves_frees_its_pages(stack: Stack) -> None:
    pieces = stack.stream_chat(QUESTION, extra_body={"ignore_eos": True, "max_tokens": 1500})
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    while stack.metric("vllm:num_requests_running") or stack.metric("vllm:kv_cache_usage_perc"):
        pass


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_killed_replica_costs_no_stream_a_token(own_stack: Stack, llm: LLM, role: str) -> None:
    options = {"extra_body": {"ignore_eos": True, "max_tokens": 200}}
    (undisturbed,) = llm.chat(
        [{"role": "user", "content": QUESTION}],
        SamplingParams(temperature=0, max_tokens=200, ignore_eos=True),
        use_tqdm=False,
    )
    pieces = own_stack.stream_chat(QUESTION, **options)
    text = next(pieces)
    own_stack.kill(role)
    text += "".join(pieces)
    assert text == undisturbed.outputs[0].text
    assert "".join(own_stack.stream_chat(QUESTION)) == offline_chat(llm, QUESTION)


def test_echoed_prompt_has_the_scores_of_the_engine_alone(stack: Stack, llm: LLM) -> None:
    """Also where the prompt is cached, and where the pages go to another replica after the first token."""
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    (offline,) = llm.generate([LONG_TEXT], params, use_tqdm=False)
    assert offline.prompt_logprobs is not None
    expected = [next(iter(entry.values())).logprob for entry in offline.prompt_logprobs if entry is not None]
    for max_tokens in (0, 0, 5):
        answer = complete(stack, LONG_TEXT, echo=True, logprobs=0, max_tokens=max_tokens, ignore_eos=True)
        (choice,) = answer["choices"]
        assert choice["text"].startswith(LONG_TEXT)
        scores = choice["logprobs"]["token_logprobs"]
        assert (scores[0], len(scores)) == (None, len(expected) + 1 + max_tokens)
        assert scores[1 : len(expected) + 1] == pytest.approx(expected, abs=1e-4)
        assert answer["usage"]["completion_tokens"] == max_tokens


def test_best_of_several_answers_is_one_of_them(stack: Stack) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "seed": 3, "max_tokens": 8}
    several = complete(stack, QUESTION, n=3, logprobs=0, **options)["choices"]
    means = {
        choice["text"]: sum(scores) / len(scores)
        for choice in several
        if (scores := choice["logprobs"]["token_logprobs"])
    }
    (best,) = complete(stack, QUESTION, best_of=3, **options)["choices"]
    assert best["logprobs"] is None
    assert best["text"] == max(means, key=lambda text: means[text])
