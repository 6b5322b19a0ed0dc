"""A gang on this host, whose leader is this process: the other ranks are its children."""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from socket import socket, socketpair

from kvasir_protocol.config import EngineConfig, ModelConfig
from kvasir_workers.held_files import create_held, is_abandoned
from kvasir_workers.load import LeaderSeat, LoadedModel, load_leader, load_model
from kvasir_workers.parallel.collectives import Meeting
from kvasir_workers.parallel.links import SocketSender, frame_of
from kvasir_workers.parallel.load_rank import plan_rank, segment_name_of
from kvasir_workers.parallel.mesh import LEADER, GangShape, RankPlace
from kvasir_workers.parallel.torch_groups import file_store
from kvasir_workers.rank import RankOrders, to_frame

FAREWELL_S = 5.0
"""For a follower to end by itself; one that hangs is killed."""

_FOLDERS = "kvasir-gang-"
_LEADER = "leader"
"""In a gang's folder, held by its leader: of one that was killed the next one takes the folder away."""


def load_gang(model: ModelConfig, engine: EngineConfig, shape: GangShape) -> "tuple[LocalGang | None, LoadedModel]":
    """A model on as many ranks as the shape has, led from here; the gang is None if this process is all of it.

    Raises as load_model does, or RankLost if another rank does not come; nothing is left behind then.
    """
    if shape.num_ranks == 1:
        return None, load_model(model, engine)
    plan_rank(model, engine, RankPlace(shape, LEADER))  # what can't be had is refused before anything is started
    gang = LocalGang(model, engine, shape)
    try:
        return gang, load_leader(model, engine, gang.seat)
    except BaseException:
        gang.close()
        raise


def share_cores(engine: EngineConfig, shape: GangShape) -> EngineConfig:
    """Ranks on one host must not fight for its cores, unless they were told how many threads to have."""
    if shape.num_ranks == 1 or engine.num_threads is not None:
        return engine
    return replace(engine, num_threads=max(1, len(os.sched_getaffinity(0)) // shape.num_ranks))


class LocalGang:
    """Followers are on their way from the constructor on; seat is where they will be met.

    segment_name: of the shared memory for all ranks' pages; "" leaves them private, and out of reach for hand-overs.
    """

    def __init__(self, model: ModelConfig, engine: EngineConfig, shape: GangShape, segment_name: str = "") -> None:
        remove_abandoned_folders(Path(tempfile.gettempdir()))
        self._folder = Path(tempfile.mkdtemp(prefix=_FOLDERS))
        self._held = os.fdopen(create_held(self._folder / _LEADER))
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        links: dict[int, socket] = {}
        try:
            for rank in range(1, shape.num_ranks):
                orders = RankOrders(
                    model=model,
                    engine=engine,
                    shape=shape,
                    rank=rank,
                    store=self._store,
                    segment=segment_name_of(segment_name, rank),
                )
                links[rank] = self._start(orders)
        except BaseException:
            for link in links.values():
                link.close()
            self._end_processes()
            raise
        meeting = Meeting(
            store=file_store(self._store, shape.num_ranks),
            deadline_s=engine.rank_deadline_s,
            abandoned=self.find_death,
        )
        self.seat = LeaderSeat(shape, meeting, SocketSender(links, engine.rank_deadline_s), segment_name)

    @property
    def _store(self) -> str:
        return str(self._folder / "store")

    def _start(self, orders: RankOrders) -> socket:
        """Our end of the follower's link."""
        ours, theirs = socketpair()
        with theirs:
            threads = {} if orders.engine.num_threads is None else {"OMP_NUM_THREADS": str(orders.engine.num_threads)}
            self._processes[orders.rank] = subprocess.Popen(
                [sys.executable, "-m", "kvasir_workers.rank", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # Where we found this package, it finds it, too.
                env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                process_group=0,  # Ctrl-C is for the leader, which ends the others in order
            )
        ours.sendall(frame_of(to_frame(orders)))
        return ours

    @property
    def process_ids(self) -> dict[int, int]:
        """Of the followers, by rank."""
        return {rank: process.pid for rank, process in self._processes.items()}

    def find_death(self) -> str | None:
        """Which follower has ended, or None."""
        for rank, process in self._processes.items():
            if (code := process.poll()) is not None:
                return f"the process of rank {rank} ended with code {code}"
        return None

    def close(self) -> None:
        """End the followers. Idempotent."""
        self.seat.followers.close()
        self._end_processes()

    def _end_processes(self) -> None:
        for process in self._processes.values():
            try:
                process.wait(FAREWELL_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._held.close()


def remove_abandoned_folders(place: Path) -> None:
    """Take away what gangs left there whose leaders were killed."""
    for folder in place.glob(f"{_FOLDERS}*"):
        if is_abandoned(folder / _LEADER):
            shutil.rmtree(folder, ignore_errors=True)
