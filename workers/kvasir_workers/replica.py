"""A replica: model, engine, data plane and hand-over in one process.

`python -m kvasir_workers.replica --config replica.yaml --secret-file FILE` starts one by hand.
"""

import argparse
import contextlib
import dataclasses
import os
import secrets
import signal
import socket as os_socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Protocol

import torch
import yaml
import zmq

from kvasir_protocol.config import ReplicaConfig
from kvasir_protocol.config_tree import build
from kvasir_protocol.errors import KvasirError
from kvasir_protocol.events import ReplicaStats
from kvasir_protocol.ids import PageIndex, RequestId
from kvasir_protocol.messages import PageSegment
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_protocol.sockets import bind_publisher, bind_server, load_or_create_secret, start_gatekeeper
from kvasir_protocol.view import ReplicaInfo, Role, StartPhase
from kvasir_workers.kv.event_log import KvEventLog
from kvasir_workers.kv.event_server import EventSockets, KvEventServer
from kvasir_workers.kv.offload.open_tiers import OpenTiers, open_tiers
from kvasir_workers.kv.page_mapping import map_for, mapping_of
from kvasir_workers.kv.page_memory import SUFFIX, remove_abandoned_segments
from kvasir_workers.kv.transfer.departures import Departures
from kvasir_workers.kv.transfer.page_intake import listen_for_pages
from kvasir_workers.kv.transfer.page_parts import PartedPages, whole_cut
from kvasir_workers.kv.transfer.pusher import PagePusher
from kvasir_workers.kv.transfer.writers import WriterFactory
from kvasir_workers.load import (
    LeaderSeat,
    LoadedModel,
    SegmentWish,
    build_engine,
    grammar_compiler,
    load_leader,
    load_model,
)
from kvasir_workers.parallel.local_gang import LocalGang
from kvasir_workers.parallel.mesh import GangShape
from kvasir_workers.ready import make_ready
from kvasir_workers.replica_server import Binding, ReplicaServer

_CANARY_TOKENS = 2
"""One token by prefill and one by decode: both paths of the model have run before anybody is served."""

_MAPPING_S = 5.0
"""Of its start, at most, for memory that the first requests would stop at. The rest waits until it rests."""

_MAX_MAPPING_THREADS = 8
"""They share one address space; two were measured to map twice as much as one."""


class Replica:
    """Loads in the constructor, serves from `start` to `stop`. Raises KvasirError if it can't be had.

    open_gang: makes the gang that it leads, if its configuration asks for several ranks, with this name for the shared
    memory of their pages; without it the others are children of this process.
    start_phases: what its start is made of, as far as it has come; complete after `start`.
    """

    def __init__(self, config: ReplicaConfig, secret: bytes, open_gang: "Callable[[str], Gang] | None" = None) -> None:
        if config.engine.num_threads is not None:
            torch.set_num_threads(config.engine.num_threads)
        self._config = config
        self.start_phases: tuple[StartPhase, ...] = ()
        self._is_serving = False
        self._tiers: OpenTiers | None = None
        self._gang: Gang | None = None
        self._page_listener: os_socket.socket | None = None
        remove_abandoned_segments()
        with self._phase("weights"):
            self._loaded = self._load(open_gang)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._gatekeeper = start_gatekeeper(self._context, secret)
        try:
            with self._phase("warm-up"):
                self._loaded = make_ready(self._loaded, config.engine)
            socket, self.endpoint = bind_server(self._context, secret, config.host, config.port)
            self._page_listener, page_endpoint = listen_for_pages(config.host)
            self._events = _EventsDesk(self._context, config, secret) if config.engine.publish_kv_events else None
            self._watcher = self._events.log if self._events is not None else None
            self.info = _info(config, self._loaded, self._events)
            self.layout = self._loaded.layout
            self._tiers = open_tiers(self._loaded.pages, config.engine, self._watcher)
            binding = Binding(
                context=self._context,
                socket=socket,
                endpoint=self.endpoint,
                page_listener=self._page_listener,
                page_endpoint=page_endpoint,
                segments=self._segments(),
                host=config.host,
                is_sealed=config.handover.encrypt,
            )
            self._assemble(binding, secret)
        except BaseException:
            self._close()
            raise

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began_s = time.monotonic()
        yield
        self.start_phases = (*self.start_phases, StartPhase(name, time.monotonic() - began_s))

    def _load(self, open_gang: "Callable[[str], Gang] | None") -> LoadedModel:
        config, shape = self._config, GangShape.of(self._config)
        if shape.num_ranks == 1:
            return load_model(config.model, config.engine, self._segment_wish())
        # Also for hand-overs by TCP: the leader speaks for all, so it must reach what the others hold.
        name = self._segment_name()
        self._gang = open_gang(name) if open_gang else LocalGang(config.model, config.engine, shape, name)
        try:
            return load_leader(config.model, config.engine, self._gang.seat)
        except BaseException:
            self._gang.close()
            raise

    def _segment_wish(self) -> SegmentWish | None:
        transport = self._config.handover.transport
        if transport in ("tcp", "process-group"):
            return None
        return SegmentWish(self._segment_name() + SUFFIX, is_must=transport == "shared-memory")

    def _segment_name(self) -> str:
        """Never the same twice: a writer that still maps the old segment would fill pages that nobody reads."""
        return f"{self._config.segment_prefix}-{self._config.replica_id}-{os.getpid()}-{secrets.token_hex(4)}"

    def _parted_pages(self) -> PartedPages:
        loaded = self._loaded
        if not loaded.parts:
            return PartedPages.whole(loaded.layout, loaded.pages)
        memories = [part.memory for part in loaded.parts]
        return PartedPages(loaded.layout, [part.cut for part in loaded.parts], memories)

    def _segments(self) -> tuple[PageSegment, ...]:
        if self._config.handover.transport == "tcp":
            return ()
        if parts := self._loaded.parts:
            found = [PageSegment(name=part.segment.name, cut=part.cut) for part in parts if part.segment is not None]
            return tuple(found) if len(found) == len(parts) else ()
        segment, layout = self._loaded.segment, self._loaded.layout
        return () if segment is None else (PageSegment(name=segment.name, cut=whole_cut(layout)),)

    @property
    def held_file(self) -> str:
        """Whoever shares memory with this process sees by it that it lives; "" if it has none."""
        segments = (self._loaded.segment, *(part.segment for part in self._loaded.parts))
        return next((segment.name for segment in segments if segment is not None and segment.is_held), "")

    def _assemble(self, binding: Binding, secret: bytes) -> None:
        loaded = self._loaded
        pages = self._pages = self._parted_pages()
        transport = self._config.handover.transport
        writers = WriterFactory(
            pages, allow_shared_memory=transport != "tcp", uses_process_groups=transport == "process-group"
        )
        self._pusher = PagePusher(
            loaded.layout,
            writers,
            secret,
            is_sealed=self._config.handover.encrypt,
            host=self._config.host,
            held_file=self.held_file,
            release=self._release_exported,
        )
        departures = Departures(self._pusher, self._release_exported, time.monotonic)
        engine = build_engine(loaded, self._config.engine, departures, self._watcher, self._tiers)
        self._grammars = grammar_compiler(Path(self._config.model.path), loaded.limits)
        # The scales of an int8 cache's tokens lie beside the pages.
        hands_over = (self._gang is None or bool(loaded.parts)) and loaded.pages.dtype != torch.int8
        self._mapping = mapping_of(loaded.own_segment)
        self._server = ReplicaServer(
            binding,
            self.info,
            engine,
            pages,
            departures,
            self._grammars,
            hands_over=hands_over,
            idle_work=self._mapping,
        )

    def _release_exported(self, pages: list[PageIndex]) -> None:
        self._server.loop.post(lambda engine: engine.release_exported(pages))

    def start(self) -> None:
        """Send a canary through the model, then serve."""
        with self._phase("test answer"):
            _run_canary(self._loaded, self._config)
        with self._phase("memory of pages"):
            map_for(_MAPPING_S, self._mapping, min(torch.get_num_threads(), _MAX_MAPPING_THREADS))
        self._pusher.start()
        if self._events is not None:
            self._events.server.start()
        self._server.start(self._pusher.counters)
        self._is_serving = True

    def stats(self) -> ReplicaStats:
        return self._server.stats()

    @property
    def num_streams(self) -> int:
        """Requests of routers that it holds, pages reserved for one included."""
        return self._server.num_streams

    def change_role(self, role: Role) -> None:
        """Tell routers another role from now on. Any role can do what any other does, so nothing else changes:
        weights, pages and running streams stay."""
        self.info = dataclasses.replace(self.info, role=role)
        self._server.change_info(self.info)

    def failure(self) -> str | None:
        """Why this replica must be replaced; None while all is well."""
        if self._is_serving and not (self._server.is_alive and self._pusher.is_alive):
            return "the thread of the data plane or of the page pusher died; the log tells of what"
        if self._is_serving and self._events is not None and not self._events.server.is_alive:
            return "the thread that publishes KV events died; the log tells of what"
        if self._gang is not None and (death := self._gang.find_death() or self._pages.failure()):
            return death
        return self._server.loop.failure()

    def stop(self) -> bool:
        """End all threads and give the shared memory's name back; streams that still run are cut. Idempotent.

        False if a step hangs: the interpreter could not end orderly beside it, the process is to be left at once.
        """
        has_ended = True
        if self._is_serving:
            self._is_serving = False
            has_ended = self._server.stop()
            if self._events is not None:
                self._events.server.stop()
        self._pusher.stop()
        self._grammars.close()
        self._close()
        return has_ended

    def _close(self) -> None:
        if self._tiers is not None:
            self._tiers.tiers.close()
        if not self._context.closed:
            self._gatekeeper.stop()
            self._context.destroy(linger=0)
        if self._page_listener is not None:
            self._page_listener.close()
        if self._loaded.segment is not None:
            self._loaded.segment.remove()
        for part in self._loaded.parts:
            part.close()
        if self._gang is not None and self._loaded.lead is not None:
            self._loaded.lead.close()
            self._gang.close()


class Gang(Protocol):
    """The other ranks of a replica, as their leader has to do with them."""

    seat: LeaderSeat

    def find_death(self) -> str | None:
        """Which of them has ended, if that is to be seen from here."""
        ...

    def close(self) -> None: ...


class _EventsDesk:
    """What tells routers of the prefix cache."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], config: ReplicaConfig, secret: bytes) -> None:
        publisher, self.endpoint = bind_publisher(context, secret, config.host, 0)
        replay, self.replay_endpoint = bind_server(context, secret, config.host, 0)
        self.log = KvEventLog()
        topic = f"kv@{config.replica_id}@{config.model.served_name}"
        self.server = KvEventServer(context, EventSockets(publisher=publisher, replay=replay), self.log, topic)


def _info(config: ReplicaConfig, loaded: LoadedModel, events: _EventsDesk | None) -> ReplicaInfo:
    return ReplicaInfo(
        replica_id=config.replica_id,
        role=config.role,
        model=config.model.served_name,
        vocab_size=loaded.limits.vocab_size,
        max_sequence_tokens=loaded.limits.max_sequence_tokens,
        page_size=config.engine.page_size,
        num_pages=loaded.pages.shape[2],
        process_id=os.getpid(),
        host=os_socket.gethostname(),
        kv_events_endpoint=events.endpoint if events is not None else "",
        kv_replay_endpoint=events.replay_endpoint if events is not None else "",
    )


def _run_canary(loaded: LoadedModel, config: ReplicaConfig) -> None:
    """Generate from an engine of its own, so that no count and no cached page of it stays."""
    engine = build_engine(loaded, config.engine)
    num_prompt_tokens = max(1, min(64, loaded.limits.max_sequence_tokens - _CANARY_TOKENS))
    sampling = SamplingParams(temperature=0, max_tokens=_CANARY_TOKENS, ignore_eos=True, seed=0)
    prompt = tuple(i % loaded.limits.vocab_size for i in range(num_prompt_tokens))
    engine.add(GenerationRequest(request_id=RequestId("canary"), prompt_token_ids=prompt, sampling=sampling))
    while engine.has_work:
        engine.step()
    engine.audit()


def main() -> int:
    """Serve one replica until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m kvasir_workers.replica", description="Serve one replica.")
    parser.add_argument("--config", type=Path, required=True, help="YAML with the fields of ReplicaConfig")
    parser.add_argument("--secret-file", type=Path, required=True, help="the cluster secret; made if it is missing")
    arguments = parser.parse_args()
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        config = build(ReplicaConfig, yaml.safe_load(arguments.config.read_text()))
        replica = Replica(config, load_or_create_secret(arguments.secret_file))
    except (KvasirError, OSError, yaml.YAMLError) as error:
        print(f"replica: error: {error}", file=sys.stderr)
        return 1
    code = 0
    try:
        replica.start()
        print(f"{config.replica_id} ({config.role}) listens on {replica.endpoint}", flush=True)
        while not stop.wait(1.0):
            if failure := replica.failure():
                print(f"replica: error: {failure}", file=sys.stderr, flush=True)
                code = 1
                break
    finally:
        if not replica.stop():
            os._exit(1)
    return code


if __name__ == "__main__":
    sys.exit(main())
