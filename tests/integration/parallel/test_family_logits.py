"""Every family on several ranks: the logits of transformers in float32, all of them, whatever the cut."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from kvasir_kernels.native.choice import without_native_kernels
from kvasir_protocol.wire import encode
from kvasir_workers.parallel.mesh import GangShape
from kvasir_workers.parallel.planned_step import PlannedStep, to_message
from kvasir_workers.runner.batch import StepArrays
from tests.checkpoints import make_checkpoint
from tests.families import CASES, PROMPTS
from tests.float8_checkpoints import KINDS, assert_same_but_for_rounding, expected_logits, make_float8_checkpoint
from tests.gangs import ThreadGang, gang_config

PAGE_SIZE = 4
SHAPES = [GangShape(tensor_parallel_size=tp, pipeline_parallel_size=pp) for tp, pp in ((2, 1), (4, 1), (1, 2), (2, 3))]


Checkpoint = tuple[Path, Tensor]
"""A directory, and the logits that transformers gives for the first prompt."""


@pytest.fixture(scope="module", params=list(CASES.values()), ids=list(CASES))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    family, overrides = request.param
    path = make_checkpoint(tmp_path_factory.mktemp("checkpoint"), family, **overrides)
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        return path, theirs(PROMPTS[0][None]).logits[0]


def chunk(start: int, num_tokens: int, table: list[int]) -> PlannedStep:
    """Some tokens of the first prompt, all of whose rows are shown."""
    arrays = StepArrays(
        token_ids=PROMPTS[0][start : start + num_tokens].numpy(),
        coming=np.zeros((2, 0), dtype=np.int64),
        starts=np.array([start]),
        counts=np.array([num_tokens]),
        samples=np.array([False]),
        tables=np.array([table[: -(-(start + num_tokens) // PAGE_SIZE)]]),
    )
    return PlannedStep(arrays, np.array([num_tokens]))


def all_logits(path: Path, shape: GangShape) -> Tensor:
    """Of the first prompt, which comes in chunks."""
    table = [7, 2, 9, 0, 4, 1, 3, 8]
    with ThreadGang(path, shape, gang_config(path, shape, 10, PAGE_SIZE)) as gang, torch.inference_mode():
        lead = gang.loaded.lead
        assert lead is not None
        found = []
        for start, num_tokens in ((0, 5), (5, 1), (6, 10), (16, 13)):
            step = chunk(start, num_tokens, table)
            lead.followers.send(encode(to_message(step, PAGE_SIZE, lead.stage.next_plan())))
            lead.stage.run(step)
            gang.finish()
            found.append(lead.stage.ask_logits(lead.stage.take_final(step)))
            lead.stage.end_asking()
    return torch.cat(found)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logits_are_those_of_transformers(checkpoint: Checkpoint, shape: GangShape) -> None:
    path, expected = checkpoint
    torch.testing.assert_close(all_logits(path, shape), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [GangShape(tensor_parallel_size=2), GangShape(pipeline_parallel_size=3)], ids=str)
def test_logits_of_float8_are_those_of_the_dequantized_weights(shape: GangShape, tmp_path: Path) -> None:
    """With scales that the ranks share; each finds those of its own tokens' parts, which rounds elsewhere."""
    kind = KINDS["compressed, static"]
    path = make_float8_checkpoint(tmp_path, kind)
    with without_native_kernels():  # whose sums differ in their last bits
        logits = all_logits(path, shape)
    assert_same_but_for_rounding(logits, expected_logits(path, kind, PROMPTS[0].tolist()))
