"""Where ranks meet."""

from pathlib import Path

import pytest

from kvasir_protocol.errors import RankLost
from kvasir_workers.parallel.torch_groups import file_store


def test_ranks_of_one_host_see_what_each_says(tmp_path: Path) -> None:
    first, second = (file_store(str(tmp_path / "store"), 2) for _ in range(2))
    first.set("word", "said")
    assert second.get("word") == b"said"


def test_store_whose_folder_went_with_the_leader_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(RankLost, match="gone is gone, and with it the leader") as caught:
        file_store(str(tmp_path / "gone" / "store"), 2)
    assert caught.value.ranks == (0,)
