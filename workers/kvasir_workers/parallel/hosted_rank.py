"""A follower in a process that somebody else made and looks after, such as an actor of the cluster's."""

import logging
from threading import Event, Thread

import torch

from kvasir_protocol.config import ReplicaConfig
from kvasir_protocol.view import Role
from kvasir_workers.kv.page_mapping import mapping_of
from kvasir_workers.kv.page_memory import remove_abandoned_segments
from kvasir_workers.kv.transfer.page_keeper import PageKeeper
from kvasir_workers.parallel.collectives import Meeting
from kvasir_workers.parallel.gang_runner import Follower
from kvasir_workers.parallel.hosted_gang import GangAddress, PublicReceiver
from kvasir_workers.parallel.load_rank import load_rank, plan_rank, segment_name_of
from kvasir_workers.parallel.mesh import GangShape, RankPlace
from kvasir_workers.parallel.rank_graphs import make_rank_ready
from kvasir_workers.parallel.torch_groups import join_store

_log = logging.getLogger(__name__)

FAREWELL_S = 5.0
"""For the step that runs to end."""


class HostedRank:
    """Loads in the constructor, together with all other ranks; follows from `start` to `stop`.

    address: what the leader announced. Raises KvasirError if the rank can't be had.
    """

    endpoint = ""
    """Nobody but its leader speaks to it."""

    num_streams = 0
    """Its leader counts them."""

    start_phases = ()
    """Its leader's are the gang's."""

    def __init__(self, config: ReplicaConfig, secret: bytes, rank: int, address: str) -> None:
        if config.engine.num_threads is not None:
            torch.set_num_threads(config.engine.num_threads)
        place, leader = RankPlace(GangShape.of(config), rank), GangAddress.from_text(address)
        plan = plan_rank(config.model, config.engine, place)
        store = join_store(leader.host, leader.port)
        meeting = Meeting(store=store, host=config.host, deadline_s=config.engine.rank_deadline_s)
        self._engine = config.engine
        self._is_stopping = Event()
        self._keeper = PageKeeper(config.host)
        self._receiver = PublicReceiver(leader, secret, rank, self._keeper.door, self._is_stopping)
        self._failure: str | None = None
        remove_abandoned_segments()
        try:
            self._loaded = load_rank(plan, meeting, segment_name_of(leader.segment_name, rank))
        except BaseException:
            self._receiver.close()
            self._keeper.close()
            raise
        self._keeper.keep(self._loaded.stage.pages)
        self._thread = Thread(target=self._serve, name="rank", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _serve(self) -> None:
        try:
            stage, memory = self._loaded.stage, self._loaded.memory
            graphs = make_rank_ready(stage, self._engine, memory.max_sequence_tokens)
            idle_work = mapping_of(self._loaded.segment)
            Follower(stage, graphs, idle_work=idle_work).serve(self._receiver)
        except Exception as error:
            if not self._is_stopping.is_set():
                _log.exception("the rank died")
            self._failure = f"{type(error).__name__}: {error}"
        finally:
            self._loaded.stage.close()

    def change_role(self, role: Role) -> None:
        """It computes what it is told, whatever the replica is called."""

    def failure(self) -> str | None:
        """Why it is of no use any more; None while it is healthy. A rank that hangs is missed by the others."""
        return self._failure

    def stop(self) -> None:
        """End between two steps, or leave a step that hangs behind. Idempotent."""
        self._is_stopping.set()
        if self._thread.is_alive():
            self._thread.join(FAREWELL_S)
        if not self._thread.is_alive():
            self._receiver.close()
        self._keeper.close()
        if self._loaded.segment is not None:
            self._loaded.segment.remove()
