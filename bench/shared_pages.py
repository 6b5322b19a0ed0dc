"""How much memory beams, and choices of one prompt, save by sharing pages.

    python -m bench.shared_pages

The embedded demo model searches with beams, and draws n choices, for texts of its own kind; so beams part and die as
they do in a real search. At each step is counted:

    own      pages as if each running sequence had its own: the sum of what their tokens fill
    used     pages that are in use, a shared one once, those that are just being copied included
    saved    1 - used / own

The sums over all steps with more than one sequence, and the least of the second half of the steps. The figures are
counts of a deterministic run: there is no spread.
"""

import argparse
import statistics
from collections.abc import Sequence

from bench.engines import KV_BYTES
from kvasir import LLM, BeamSearchParams, SamplingParams
from kvasir_workers.engine import Engine, StepFlight
from kvasir_workers.step_plan import StepPlan

TEXT = (
    "A KV cache keeps the keys and values of all tokens that a model has seen, so that each new token needs only one "
    "pass. Pages of fixed size make room for many requests at once, and equal beginnings are kept only once. "
)
PROMPT_TOKENS = {"short prompt": 20, "long prompt": 160}


class CountingSteps:
    """An engine's runner that counts the pages of each step that has more than one sequence."""

    def __init__(self, engine: Engine, page_size: int) -> None:
        self._engine, self._runner, self._page_size = engine, engine._runner, page_size
        self.own: list[int] = []
        self.used: list[int] = []

    def launch(self, plan: StepPlan) -> StepFlight:
        if len(plan.entries) > 1:
            tokens = [entry.start + entry.num_new for entry in plan.entries]
            self.own.append(sum(-(-number // self._page_size) for number in tokens))
            self.used.append(self._engine.num_used_pages)
        return self._runner.launch(plan)


def measure(num_prompt: int, num_answer: int, width: int, page_size: int, *, beams: bool) -> CountingSteps:
    with LLM(kv_cache_memory_bytes=KV_BYTES, block_size=page_size, device="cpu", num_threads=1) as llm:
        engine = llm._driver.engine
        engine._runner = steps = CountingSteps(engine, page_size)
        prompt = (llm._codec.encode(TEXT) * 10)[:num_prompt]
        if beams:
            llm.beam_search(prompt, BeamSearchParams(beam_width=width, max_tokens=num_answer, ignore_eos=True))
        else:
            params = SamplingParams(n=width, max_tokens=num_answer, ignore_eos=True, temperature=1, seed=0)
            llm.generate(prompt, params, use_tqdm=False)
    return steps


def show(name: str, steps: CountingSteps) -> None:
    saved = [1 - used / own for used, own in zip(steps.used, steps.own, strict=True)]
    print(
        f"  {name:12}{statistics.mean(steps.own):8.1f}{statistics.mean(steps.used):8.1f}"
        f"{1 - sum(steps.used) / sum(steps.own):8.1%}{min(saved[len(saved) // 2 :]):8.1%}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answer", type=int, default=100, help="tokens")
    parser.add_argument("--page-size", type=int, default=16)
    parser.add_argument("--widths", type=int, nargs="+", default=[2, 4, 6])
    options = parser.parse_args(arguments)
    for name, num_prompt in PROMPT_TOKENS.items():
        print(f"{name}, {num_prompt} + {options.answer} tokens{'own':>6}{'used':>8}{'saved':>8}{'least':>8}")
        for width in options.widths:
            for kind in ("beams", "choices"):
                steps = measure(num_prompt, options.answer, width, options.page_size, beams=kind == "beams")
                show(f"{width} {kind}", steps)


if __name__ == "__main__":
    main()
