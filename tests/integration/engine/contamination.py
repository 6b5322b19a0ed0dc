"""Many requests with shared beginnings, prompts of up to seven chunks, a quarter of them aborted in the middle of their
prompts: does anybody see another's tokens?

python -m tests.integration.engine.contamination --requests 2000
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import torch

from kvasir_protocol.ids import RequestId
from kvasir_protocol.request import GenerationRequest, SamplingParams
from tests.checkpoints import make_checkpoint
from tests.integration.engine.conftest import Model, run

NUM_TENANTS = 3


class Soak:
    """An engine whose pool is too small for all, and for each prompt the answer of one that caches nothing."""

    def __init__(self, model: Model, seed: int) -> None:
        self._draw = random.Random(seed)
        self._alone = model.engine(caches=False, page_size=16)
        self.engine = model.engine(num_pages=28, budget=24, max_num_seqs=6, page_size=16)
        self._shared = [self._draw.choices(range(256), k=70) for _ in range(NUM_TENANTS)]
        self._history: list[list[int]] = []
        self._expected: dict[str, list[int]] = {}
        self._given: dict[str, list[int]] = {}
        self.num_aborted = 0
        self.num_wrong = 0

    def run(self, num_requests: int) -> None:
        """All requests, a few new ones each step; the engine's books are checked after each."""
        for number in range(num_requests):
            self._arrive(number)
            for _ in range(self._draw.randint(0, 4)):
                self._step()
        while self.engine.has_work:
            self._step()
        assert self.engine.num_used_pages == 0
        self.num_wrong = sum(self._given[name] != expected for name, expected in self._expected.items())

    def _arrive(self, number: int) -> None:
        request = self._request(number)
        name = request.request_id
        self._given[name] = []
        self.engine.add(request)
        if self._draw.random() < 0.25:
            self._step()
            self.num_aborted += self.engine.abort(name)
            return
        (alone,) = run(self._alone, [request])
        self._expected[name] = alone.token_ids
        self._history.append([*request.prompt_token_ids, *alone.token_ids])

    def _request(self, number: int) -> GenerationRequest:
        """A tenant's beginning cut anywhere, or an earlier chat, then a tag that nobody else has."""
        tenant = self._draw.randrange(NUM_TENANTS)
        beginning = self._shared[tenant][: self._draw.randint(1, 70)]
        if self._history and self._draw.random() < 0.4:
            beginning = self._draw.choice(self._history)[: self._draw.randint(1, 150)]
        tag = [number // 256 % 256, number % 256, *self._draw.choices(range(256), k=self._draw.randint(0, 30))]
        return GenerationRequest(
            request_id=RequestId(f"r{number}"),
            prompt_token_ids=(*beginning, *tag),
            sampling=SamplingParams(temperature=0, max_tokens=self._draw.randint(1, 24), seed=0, ignore_eos=True),
            cache_salt=self._draw.choice(["", "", "tenant"]),
        )

    def _step(self) -> None:
        for output in self.engine.step():
            self._given[output.request_id] += output.token_ids
        self.engine.audit()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # on a busy machine, threads of so small a model would mostly wait for each other
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        model = Model(make_checkpoint(Path(directory), "LlamaForCausalLM"))
        soak = Soak(model, arguments.seed)
        soak.run(arguments.requests)
    counters = soak.engine.counters()
    print(
        f"{arguments.requests} requests, {soak.num_aborted} aborted, {soak.num_wrong} wrong; "
        f"{counters.cached_prompt_tokens} of {counters.prompt_tokens} prompt tokens cached, "
        f"{counters.num_preemptions} preemptions, {time.monotonic() - start:.0f} s"
    )
    return 1 if soak.num_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
