"""Weights on their way to the device, an engine directory's kernels found there, and tiles measured on it."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kvasir_workers.engine_directory.build import BuildOrder, build_engine_directory
from kvasir_workers.engine_directory.kernels import target_here
from kvasir_workers.model.loader import load_decoder, load_spec
from kvasir_workers.parallel.mesh import GangShape, RankPlace
from kvasir_workers.parallel.shard import cut_model
from kvasir_workers.parallel.slices import load_shard
from tests.checkpoints import MODEL_TYPES, make_checkpoint

pytestmark = pytest.mark.gpu

CPU = torch.device("cpu")
ONE, TWO = GangShape(), GangShape(tensor_parallel_size=2)

STEP = """
import sys
from pathlib import Path
import torch, triton
from kvasir_kernels.paged_cache import AttentionBatch, LayerCache
from kvasir_workers.engine_directory.kernels import bring_kernels
from kvasir_workers.model.loader import load_decoder

found = {}
triton.knobs.compilation.listener = lambda **seen: found.update({seen["src"].name: seen["cache_hit"]})
directory, device = Path(sys.argv[1]), torch.device("cuda")
bring_kernels(directory, device)
decoder = load_decoder(directory, torch.bfloat16, device)
spec = decoder.spec
pages = torch.zeros(spec.num_layers, 2, 200, 16, spec.num_kv_heads, spec.head_dim, dtype=torch.bfloat16, device=device)
caches = [LayerCache(key, value) for key, value in pages]
with torch.inference_mode():
    tables = torch.arange(200, device=device).view(2, 100)
    batch = AttentionBatch((1, 20), (1500, 40), tables, 1)
    places = torch.arange(21, device=device)
    decoder(places, places, places, caches, batch)
print(sorted(found), all(found.values()))
"""


def order(source: Path, target: Path, shape: GangShape = ONE) -> BuildOrder:
    return BuildOrder(
        source=source, target=target, dtype=torch.bfloat16, quantization=None, shape=shape, device=target_here()
    )


@pytest.mark.parametrize("family", MODEL_TYPES)
@pytest.mark.parametrize("shape", [ONE, TWO], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_on_the_device_are_those_on_the_host(
    family: str, shape: GangShape, dtype: torch.dtype, tmp_path: Path
) -> None:
    source = make_checkpoint(tmp_path, family)
    shard = cut_model(load_spec(source), RankPlace(shape, shape.num_ranks - 1))
    here, there = (load_shard(source, dtype, torch.device(device), shard) for device in ("cpu", "cuda"))
    assert all(torch.equal(a, b.cpu()) for a, b in zip(here.parameters(), there.parameters(), strict=True))


def test_an_engine_directory_has_the_same_weights(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "checkpoint", "LlamaForCausalLM")
    build_engine_directory(order(source, tmp_path / "engine"))
    found = load_decoder(tmp_path / "engine", torch.bfloat16, torch.device("cuda"))
    expected = load_decoder(source, torch.bfloat16, CPU)
    assert all(torch.equal(a, b.cpu()) for a, b in zip(expected.parameters(), found.parameters(), strict=True))


def test_a_step_compiles_nothing_that_the_directory_has(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "checkpoint", "LlamaForCausalLM")
    build_engine_directory(order(source, tmp_path / "engine"))
    run = subprocess.run(
        [sys.executable, "-c", STEP, str(tmp_path / "engine")],
        env=os.environ | {"TRITON_CACHE_DIR": str(tmp_path / "cache")}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.stdout.rstrip().endswith("True"), run.stdout + run.stderr
    assert all(name in run.stdout for name in ("decode", "merge", "extend", "_normalise", "_rotate_and_write", "_gate"))


def test_tiles_are_measured_and_found_again(tmp_path: Path) -> None:
    from kvasir_kernels.tuning.choices import ChoiceBook, place_of
    from kvasir_kernels.tuning.clock import Clock
    from kvasir_kernels.tuning.problems import AttentionShape, Loads, attention_problems
    from kvasir_kernels.tuning.search import tune
    from kvasir_kernels.tuning.table import write_table

    device = torch.device("cuda", torch.cuda.current_device())
    shape = AttentionShape(8, 2, 128, 16, torch.bfloat16, torch.bfloat16)
    loads = Loads(decodes=(((1, 3000), (1, 40)),), chunks=(((200, 500),),))
    book_file = tmp_path / "tiles.json"
    for problem in attention_problems(shape, loads, device):
        few = replace(problem, candidates=problem.candidates[:4])
        choice, search = tune(few, Clock(device), place_of(device))
        assert len(search.seconds) + len(search.refused) == 4
        assert 0 < choice.seconds <= choice.default_seconds
        write_table(book_file, [choice])
        assert ChoiceBook((book_file,), place_of(device)).find(problem.key) == choice.tile
