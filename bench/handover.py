"""What it costs to hand pages over: bandwidth of each transport, and how long the next token waits.

    python -m bench.handover [--shape qwen3-0.6b] [--mbytes N] [--rounds N]

Bandwidth: a real pusher here, a real importer in another process, from the first page offered to the last one there.
Beside it in every round: plain copies in memory, and raw sockets on loopback (`plain_transfers.py`).
Tokens: two replicas with the demo model, one thread each. From the prefill side's token to the decode side's first, and
which part of the bytes left while the prompt was still being computed.
"""

import argparse
import random
import secrets
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from multiprocessing.connection import Connection
from statistics import median

import torch
import zmq

from bench.engines import VOCAB_SIZE
from bench.figures import spread
from bench.plain_transfers import ROADS, Cost, beside, copying_cost, plain_copies, raw_sockets
from bench.replicas import HANDOVER_S, hand_over, lines_to, replica_processes
from kvasir.demo import demo_model_path
from kvasir_protocol.config import EngineConfig, HandoverConfig, ModelConfig, ReplicaConfig
from kvasir_protocol.ids import PageIndex, ReplicaId, RequestId
from kvasir_protocol.messages import (
    LAYOUT_VERSION,
    BeginPush,
    Commit,
    HandoverTicket,
    Message,
    PageLayout,
    PageSegment,
    PushPages,
)
from kvasir_protocol.request import GenerationRequest, SamplingParams
from kvasir_protocol.sockets import bind_server, load_secret, start_gatekeeper
from kvasir_protocol.wire import decode, encode
from kvasir_workers.kv.page_memory import PageShape, SharedSegment
from kvasir_workers.kv.transfer.departures import Departure
from kvasir_workers.kv.transfer.group_intake import GroupIntake
from kvasir_workers.kv.transfer.importer import PageImporter
from kvasir_workers.kv.transfer.page_content import layout_dtype, layout_page_bytes
from kvasir_workers.kv.transfer.page_intake import PageIntake, listen_for_pages
from kvasir_workers.kv.transfer.page_parts import PartedPages, whole_cut
from kvasir_workers.kv.transfer.pusher import PagePusher
from kvasir_workers.kv.transfer.writers import WriterFactory
from kvasir_workers.sequence import Sequence as TokenSequence
from kvasir_workers.socket_thread import Rounds, SocketThread

PAGE_SIZE = 16
SECRET = b"b" * 32
REQUEST = GenerationRequest(
    request_id=RequestId("bench"), prompt_token_ids=(1,), sampling=SamplingParams(max_tokens=2, seed=0)
)
MEGABYTE = 1e6

BASELINES = {
    "shared memory": ("copy", "copy to shared memory"),
    "TCP": ("loopback, one buffer", "loopback", "loopback, AES-GCM"),
    "TCP, clear": ("loopback, one buffer", "loopback"),
    "process group": ("loopback, one buffer", "loopback"),
    "loopback, AES-GCM": ("loopback",),
}
"""What is measured against what."""

TRANSPORTS = {
    "shared memory": HandoverConfig(transport="shared-memory"),
    "TCP": HandoverConfig(transport="tcp"),
    "TCP, clear": HandoverConfig(transport="tcp", encrypt=False),
    "process group": HandoverConfig(transport="process-group"),
}
"""How replicas are told to use each of them."""

SHAPES = {"demo": ("float32", 6, 4, 32), "qwen3-0.6b": ("bfloat16", 28, 8, 128)}
"""dtype, layers, key/value heads, head size."""


def layout_of(shape: str) -> PageLayout:
    dtype, num_layers, num_kv_heads, head_dim = SHAPES[shape]
    return PageLayout(
        version=LAYOUT_VERSION,
        dtype=dtype,
        page_size=PAGE_SIZE,
        num_layers=num_layers,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        model_fingerprint="bench",
    )


def memory_shape(layout: PageLayout, num_pages: int) -> PageShape:
    return (layout.num_layers, 2, num_pages, layout.page_size, layout.num_kv_heads, layout.head_dim)


# The other side of the bandwidth


class Desk:
    """Tells the parent when all pages of a reservation are there, and the CPU time used up to then."""

    def __init__(self, parent: Connection) -> None:
        self._parent = parent

    def start_reserved(self, sequence: TokenSequence, emitted_token_ids: tuple[int, ...]) -> None:
        self._parent.send(("there", time.process_time()))

    def release_reserved(self, sequence: TokenSequence) -> None:
        self._parent.send(("lost", time.process_time()))


def serve_pages(shape: str, num_pages: int, segment_name: str, parent: Connection) -> None:
    """The decode side's importer, behind the sockets that a replica has; for each number of pages a ticket."""
    layout = layout_of(shape)
    segment = SharedSegment.create(segment_name, memory_shape(layout, num_pages), layout_dtype(layout))
    segment.tensor.fill_(1)  # the first touch of a page costs as much as several copies
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    gatekeeper = start_gatekeeper(context, SECRET)
    words, endpoint = bind_server(context, SECRET, "127.0.0.1", 0)
    listener, page_endpoint = listen_for_pages("127.0.0.1")

    def send(peer: bytes, message: Message) -> None:
        words.send_multipart([peer, encode(message)])

    importer = PageImporter(
        PartedPages.whole(layout, segment.tensor),
        VOCAB_SIZE,
        Desk(parent),
        send,
        time.monotonic,
        page_endpoint,
        is_sealed=False,  # the writer says what it wants
    )

    def close() -> None:
        words.close()
        intake.close()
        groups.close()

    rounds = Rounds(timeout_ms=lambda: 100, on_round=importer.tick, on_end=close)
    thread = SocketThread(context, "bench", rounds)
    intake = PageIntake(listener, importer, thread, time.monotonic)
    groups = GroupIntake(importer, "127.0.0.1", thread.post)
    importer.meet = groups.meet
    thread.register(words, lambda: hear(*words.recv_multipart(), importer, groups))
    thread.start()
    for number in iter(parent.recv, None):
        chosen = [PageIndex(page) for page in random.Random(1).sample(range(num_pages), number)]
        thread.post(partial(open_reservation, importer, chosen, endpoint, segment_name, parent))
    thread.stop()
    gatekeeper.stop()
    context.destroy(linger=0)
    segment.remove()


def hear(peer: bytes, frame: bytes, importer: PageImporter, groups: GroupIntake) -> None:
    match message := decode(frame):
        case BeginPush():
            importer.begin(peer, message)
        case PushPages():
            if not groups.expect(peer, message):
                importer.take_pages(peer, message)
        case Commit():
            importer.commit(peer, message)


def open_reservation(
    importer: PageImporter, pages: list[PageIndex], endpoint: str, segment_name: str, parent: Connection
) -> None:
    sequence = TokenSequence(REQUEST)
    sequence.pages = pages
    reservation = importer.open(sequence, b"", HANDOVER_S)
    ticket = HandoverTicket(
        endpoint=endpoint,
        generation=reservation.generation,
        first_page=0,
        page_indices=tuple(pages),
        segments=(PageSegment(name=segment_name, cut=whole_cut(importer.pages.layout)),),
        deadline_s=HANDOVER_S,
    )
    parent.send((ticket, time.process_time()))


# Bandwidth


@dataclass(slots=True)
class Source:
    """Random pages of ours, in the order in which a busy pool would hand them out, and a pusher for each transport."""

    pages: torch.Tensor
    layout: PageLayout
    order: list[PageIndex]
    pushers: dict[str, PagePusher]

    def push(self, other: Connection, transport: str, num_pages: int) -> Cost:
        """From the offer to the news that all are there."""
        other.send(num_pages)
        ticket, reader_began_s = other.recv()
        departure = Departure(REQUEST.request_id, ticket)
        started_at, cpu_s = time.perf_counter(), time.process_time()
        self.pushers[transport].export(departure, 0, self.order[:num_pages])
        self.pushers[transport].finish(departure, (1,), time.monotonic())
        news, reader_ended_s = other.recv()
        if news != "there":
            raise RuntimeError(f"a hand-over of {num_pages} pages over {transport} failed")
        seconds = time.perf_counter() - started_at
        return Cost(seconds, time.process_time() - cpu_s, reader_ended_s - reader_began_s)


@contextmanager
def source_of(shape: str, num_pages: int) -> Iterator[Source]:
    layout = layout_of(shape)
    pages = torch.randn(memory_shape(layout, num_pages)).to(layout_dtype(layout))
    order = [PageIndex(page) for page in random.Random(0).sample(range(num_pages), num_pages)]
    pushers = {}
    for transport in TRANSPORTS:
        writers = WriterFactory(
            PartedPages.whole(layout, pages),
            allow_shared_memory=transport == "shared memory",
            uses_process_groups=transport == "process group",
        )
        pushers[transport] = PagePusher(layout, writers, SECRET, lambda released: None, is_sealed=transport == "TCP")
        pushers[transport].start()
    try:
        yield Source(pages, layout, order, pushers)
    finally:
        for pusher in pushers.values():
            pusher.stop()


def measure_bandwidth(shape: str, num_mbytes: int, num_rounds: int) -> None:
    page_bytes = layout_page_bytes(layout_of(shape))
    num_pages = max(1, int(num_mbytes * MEGABYTE) // page_bytes)
    num_bytes = num_pages * page_bytes
    segment_name = f"kvasir-bench-{secrets.token_hex(4)}"
    costs: dict[str, list[Cost]] = defaultdict(list)
    one_page: dict[str, list[Cost]] = defaultdict(list)
    with (
        source_of(shape, num_pages) as source,
        plain_copies(num_bytes) as copies,
        raw_sockets(num_bytes) as sockets,
        beside(serve_pages, shape, num_pages, segment_name) as server,
    ):
        for transport in TRANSPORTS:
            source.push(server, transport, num_pages)  # connections, and memory touched for the first time
        for _ in range(num_rounds):
            for name, copy in copies.items():
                costs[name].append(copying_cost(copy))
            for road in ROADS:
                costs[road].append(sockets.send(road))
            for transport in TRANSPORTS:
                costs[transport].append(source.push(server, transport, num_pages))
                one_page[transport].append(source.push(server, transport, 1))
    print(f"{shape}: {num_pages} pages of {page_bytes / 1000:.0f} kB, and the part of its baselines in each round")
    report_bandwidth(num_bytes, costs)
    for transport, samples in one_page.items():
        print(f"  one page, {transport:<13}  {spread([cost.seconds * 1000 for cost in samples])} ms until it is there")


def report_bandwidth(num_bytes: int, costs: dict[str, list[Cost]]) -> None:
    gigabytes = num_bytes / 1e9
    for name, samples in costs.items():
        rates = spread([gigabytes / cost.seconds for cost in samples])
        writer, reader = (
            median(cpu) / gigabytes
            for cpu in ([cost.writer_cpu_s for cost in samples], [cost.reader_cpu_s for cost in samples])
        )
        print(f"  {name:<22} {rates} GB/s; CPU seconds a GB: writer {writer:.2f}, reader {reader:.2f}")
        for baseline in BASELINES.get(name, ()):
            pairs = zip(costs[baseline], samples, strict=True)
            ratios = [before.seconds / after.seconds for before, after in pairs]
            print(f"  {'':<22} {median(ratios):.0%} ({min(ratios):.0%} to {max(ratios):.0%}) of a {baseline}")


# Tokens


def replica_config(role: str, handover: HandoverConfig, chunk_tokens: int) -> ReplicaConfig:
    return ReplicaConfig(
        replica_id=ReplicaId(f"{role}-0"),
        role=role,  # type: ignore[arg-type]
        model=ModelConfig(path=str(demo_model_path()), served_name="demo"),
        engine=EngineConfig(
            device="cpu",
            num_threads=1,
            kv_cache_bytes=128 * 2**20,
            max_num_seqs=8,
            max_num_batched_tokens=chunk_tokens,
            enable_prefix_caching=False,
        ),
        handover=handover,
        segment_prefix=f"kvasir-bench-{secrets.token_hex(4)}",
    )


def measure_tokens(transport: str, num_prompt_tokens: int, chunk_tokens: int, num_rounds: int) -> None:
    configs = [replica_config(role, TRANSPORTS[transport], chunk_tokens) for role in ("prefill", "decode")]
    gaps, steps, prefills = [], [], []
    with (
        replica_processes(configs) as (endpoints, secret_file),
        lines_to(endpoints, load_secret(secret_file)) as (prefill, decode_side),
    ):
        draw = random.Random(0)
        for index in range(num_rounds + 1):  # the first one opens the connection
            sampling = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, seed=0)
            prompt = tuple(draw.choices(range(3, 2000), k=num_prompt_tokens))
            request = GenerationRequest(request_id=RequestId(str(index)), prompt_token_ids=prompt, sampling=sampling)
            asked_at = time.perf_counter()
            first, rest = hand_over(request, prefill, decode_side)
            if index:
                prefills.append((first[0] - asked_at) * 1000)
                gaps.append((rest[0] - first[0]) * 1000)
                steps += [(after - before) * 1000 for before, after in pairwise(rest)]
        told = prefill.stats().handover
    num_bytes = told.pushed_bytes_tcp + told.pushed_bytes_shared_memory + told.pushed_bytes_process_group
    hidden = told.hidden_bytes / num_bytes
    exposed_ms = told.exposed_s / told.pushed_requests * 1000
    print(f"  {transport:<13} prefill {spread(prefills, 0)} ms, next token {spread(gaps, 1)} ms later")
    print(f"  {'':<13} a decode step: {spread(steps, 1)} ms")
    print(
        f"  {'':<13} {hidden:.0%} of the bytes left while the prompt was computed, the last {exposed_ms:.2f} ms after"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, action="append", help="of a page; may be given more than once")
    parser.add_argument("--mbytes", type=int, default=256, help="handed over at a time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=1024, help="tokens of a prompt of the demo model")
    parser.add_argument("--chunk", type=int, default=256, help="tokens of a prefill step")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for shape in options.shape or ["demo", "qwen3-0.6b"]:
        measure_bandwidth(shape, options.mbytes, options.rounds)
    print(f"demo model, prompts of {options.prompt} tokens in chunks of {options.chunk}, one at a time")
    for transport in TRANSPORTS:
        measure_tokens(transport, options.prompt, options.chunk, options.rounds)


if __name__ == "__main__":
    main()
