"""Pages of a gang leave while its prompt is computed, and are whole on every rank when they do."""

from collections.abc import Sequence

import pytest

from kvasir_protocol.ids import PageIndex
from kvasir_protocol.request import SamplingParams
from kvasir_workers.load import build_engine
from kvasir_workers.parallel.mesh import GangShape
from kvasir_workers.sequence import Sequence as TokenSequence
from tests.gangs import DEMO_MODEL, ThreadGang, gang_config
from tests.unit.workers.fakes import make_request

NUM_TOKENS, CHUNK, PAGE_SIZE = 22, 8, 4


class Exporter:
    """Looks at the pages of all ranks in the moment in which they are exported."""

    def __init__(self, gang: ThreadGang) -> None:
        self._gang = gang
        self.exported: list[list[PageIndex]] = []
        self.was_whole: list[bool] = []
        self.has_finished = False

    def export(self, sequence: TokenSequence, first_page: int, pages: Sequence[PageIndex]) -> None:
        assert not self.has_finished
        self.exported.append(list(pages))
        num_whole = sequence.num_computed // PAGE_SIZE - first_page  # the last page has room left
        whole = pages[: max(0, num_whole)]
        self.was_whole += [not memory[:, :, page].isnan().any() for memory in self._gang.pages() for page in whole]

    def finish(self, sequence: TokenSequence, emitted_token_ids: tuple[int, ...]) -> None:
        self.has_finished = True

    def cancel(self, sequence: TokenSequence) -> None:
        raise AssertionError("nobody cancels")


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2), (2, 2), (1, 3)])
def test_pages_leave_chunk_by_chunk_when_all_ranks_have_computed_them(tp: int, pp: int) -> None:
    shape = GangShape(tensor_parallel_size=tp, pipeline_parallel_size=pp)
    config = gang_config(DEMO_MODEL, shape, 40, PAGE_SIZE, max_num_batched_tokens=CHUNK, max_num_seqs=2)
    with ThreadGang(DEMO_MODEL, shape, config) as gang:
        exporter = Exporter(gang)
        engine = build_engine(gang.loaded, config, exporter)
        sampling = SamplingParams(max_tokens=4, seed=0, temperature=0, ignore_eos=True)
        engine.add(make_request("r", range(5, 5 + NUM_TOKENS), sampling=sampling), is_prefill_only=True)
        while engine.has_work:
            engine.step()
    assert exporter.has_finished
    assert [len(pages) for pages in exporter.exported] == [2, 2, 1, 1]
    assert all(exporter.was_whole)
    assert len(exporter.was_whole) == 5 * shape.num_ranks
