"""Tuning the real kernels, in Triton's interpreter and under a clock that only counts: the last tile is the fastest."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

CODE = """
import json, sys
from dataclasses import replace
from pathlib import Path
import torch
from kvasir_kernels.float8.reference import Grain
from kvasir_kernels.tuning.choices import choices_at, forced
from kvasir_kernels.tuning.problems import AttentionShape, Loads, attention_problems, float8_problems
from kvasir_kernels.tuning.search import tune
from kvasir_kernels.tuning.table import Place, write_table

class Counted:
    left = 1000.0
    def seconds(self, work):
        work()
        self.left -= 1
        return self.left

here, file, cpu = Place("interpreter", "any"), Path(sys.argv[1]), torch.device("cpu")
loads = Loads(decodes=(((1, 40), (1, 3)),), chunks=(((9, 20),),))
problems = []
for stored in (torch.float16, torch.float8_e4m3fn, torch.int8):
    problems += attention_problems(AttentionShape(4, 2, 32, 4, torch.float16, stored), loads, cpu)
problems += float8_problems(128, 192, Grain.BLOCK, cpu)
for problem in problems[:7]:
    few = replace(problem, candidates=problem.candidates[:2])
    choice, search = tune(few, Counted(), here)
    assert not search.refused, search.refused
    assert len(set(problem.candidates)) == len(problem.candidates)
    write_table(file, [choice])
print(json.dumps([[choice.key.op, choice.key.dtype, choice.tile] for choice in choices_at(here, (file,))]))
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_every_tunable_operation_is_tried_and_written_down(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "tiles.json")],
        cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=170,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    written = json.loads(run.stdout)
    assert {(op, dtype) for op, dtype, _ in written} == {
        *((op, f"float16 over {stored}") for op in ("attention of decodes", "attention of chunks")
          for stored in ("float16", "float8_e4m3fn", "int8")),
        ("float8 product", "float8 in blocks"),
    }  # fmt: skip
    tiles = {op: set(tile) for op, _, tile in written}
    assert tiles["attention of decodes"] == {"rows", "keys", "num_warps", "num_stages", "programs"}
    assert tiles["float8 product"] == {"outputs", "tokens", "num_warps", "num_stages"}
