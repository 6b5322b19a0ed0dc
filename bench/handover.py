"""What it costs to hand pages over: bandwidth of each transport, and how long the next token waits.

    python -m bench.handover [--shape qwen3-0.6b] [--mbytes N] [--rounds N]

Bandwidth: a real pusher here, a real importer in another process, from the first page offered to the last one there.
Beside it in every round: a plain copy in memory, and a raw socket on loopback.
Tokens: two replicas with the demo model, one thread each. From the prefill side's token to the decode side's first, and
which part of the bytes left while the prompt was still being computed.
"""

import argparse
import multiprocessing
import random
import secrets
import socket
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from multiprocessing.connection import Connection
from statistics import median

import numpy as np
import torch
import zmq

from bench.engines import VOCAB_SIZE
from bench.figures import spread
from bench.replicas import HANDOVER_S, hand_over, lines_to, replica_processes, timed
from kvasir.demo import demo_model_path
from kvasir_protocol.config import EngineConfig, HandoverConfig, ModelConfig, ReplicaConfig, TransportName
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
from kvasir_workers.kv.transfer.importer import PageImporter
from kvasir_workers.kv.transfer.page_content import layout_dtype, layout_page_bytes
from kvasir_workers.kv.transfer.page_intake import PageIntake, listen_for_pages
from kvasir_workers.kv.transfer.page_parts import PartedPages, whole_cut
from kvasir_workers.kv.transfer.pusher import PagePusher
from kvasir_workers.kv.transfer.sealing import KEY_BYTES, TAG_BYTES, PageSeal
from kvasir_workers.kv.transfer.writers import WriterFactory
from kvasir_workers.sequence import Sequence as TokenSequence
from kvasir_workers.socket_thread import Rounds, SocketThread

PAGE_SIZE = 16
SECRET = b"b" * 32
REQUEST = GenerationRequest(
    request_id=RequestId("bench"), prompt_token_ids=(1,), sampling=SamplingParams(max_tokens=2, seed=0)
)
CHUNK_BYTES = 2**20
MEGABYTE = 1e6

KEY = bytes(KEY_BYTES)

BASELINES = {"shared memory": "memory copy", "TCP": "loopback", "TCP, clear": "loopback"}
"""Transports, and what each is measured against."""

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
    """Tells the parent when all pages of a reservation are there."""

    def __init__(self, parent: Connection) -> None:
        self._parent = parent

    def start_reserved(self, sequence: TokenSequence, emitted_token_ids: tuple[int, ...]) -> None:
        self._parent.send("there")

    def release_reserved(self, sequence: TokenSequence) -> None:
        self._parent.send("lost")


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

    def hear() -> None:
        peer, frame = words.recv_multipart()
        match message := decode(frame):
            case BeginPush():
                importer.begin(peer, message)
            case PushPages():
                importer.take_pages(peer, message)
            case Commit():
                importer.commit(peer, message)

    def close() -> None:
        words.close()
        intake.close()

    rounds = Rounds(timeout_ms=lambda: 100, on_round=importer.tick, on_end=close)
    thread = SocketThread(context, "bench", rounds)
    thread.register(words, hear)
    intake = PageIntake(listener, importer, thread, time.monotonic)
    thread.start()
    for number in iter(parent.recv, None):
        chosen = [PageIndex(page) for page in random.Random(1).sample(range(num_pages), number)]
        thread.post(partial(open_reservation, importer, chosen, endpoint, segment_name, parent))
    thread.stop()
    gatekeeper.stop()
    context.destroy(linger=0)
    segment.remove()


def open_reservation(
    importer: PageImporter, pages: list[PageIndex], endpoint: str, segment_name: str, parent: Connection
) -> None:
    sequence = TokenSequence(REQUEST)
    sequence.pages = pages
    reservation = importer.open(sequence, b"", HANDOVER_S)
    parent.send(
        HandoverTicket(
            endpoint=endpoint,
            generation=reservation.generation,
            first_page=0,
            page_indices=tuple(pages),
            segments=(PageSegment(name=segment_name, cut=whole_cut(importer.pages.layout)),),
            deadline_s=HANDOVER_S,
        )
    )


def swallow(num_bytes: int, num_rounds: int, parent: Connection) -> None:
    """Read num_bytes from each of some connections, and say so with a byte. Of every second one, chunks are sealed."""
    buffer, opened = bytearray(CHUNK_BYTES + TAG_BYTES), bytearray(CHUNK_BYTES)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        parent.send(listener.getsockname()[1])
        for index in range(2 * num_rounds):
            connection, _ = listener.accept()
            seal = PageSeal(KEY) if index % 2 else None
            with connection:
                for size in chunk_sizes(num_bytes):
                    read_whole(connection, memoryview(buffer)[: size + TAG_BYTES if seal else size])
                    if seal is not None:
                        seal.open(b"", memoryview(buffer)[: size + TAG_BYTES], opened)
                connection.sendall(b"x")


def read_whole(connection: socket.socket, buffer: memoryview) -> None:
    while len(buffer):
        buffer = buffer[connection.recv_into(buffer) :]


def chunk_sizes(num_bytes: int) -> list[int]:
    return [min(CHUNK_BYTES, num_bytes - start) for start in range(0, num_bytes, CHUNK_BYTES)]


@contextmanager
def beside(target: object, *arguments: object) -> Iterator[Connection]:
    """Run a function in another process for the time of the block; it ends by itself or at a word."""
    ours, theirs = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=target, args=(*arguments, theirs))  # type: ignore[arg-type]
    process.start()
    try:
        yield ours
    finally:
        ours.send(None)
        process.join()


# Bandwidth


@dataclass(slots=True)
class Source:
    """Random pages of ours, in the order in which a busy pool would hand them out, and a pusher for each transport."""

    pages: torch.Tensor
    layout: PageLayout
    order: list[PageIndex]
    pushers: dict[str, PagePusher]

    def push(self, other: Connection, transport: str, num_pages: int) -> float:
        """Seconds from the offer to the news that all are there."""
        other.send(num_pages)
        sequence = TokenSequence(REQUEST, other.recv())
        started_at = time.perf_counter()
        self.pushers[transport].export(sequence, 0, self.order[:num_pages])
        self.pushers[transport].finish(sequence, (1,))
        news = other.recv()
        if news != "there":
            raise RuntimeError(f"a hand-over of {num_pages} pages over {transport} failed")
        return time.perf_counter() - started_at


@contextmanager
def source_of(shape: str, num_pages: int) -> Iterator[Source]:
    layout = layout_of(shape)
    pages = torch.randn(memory_shape(layout, num_pages)).to(layout_dtype(layout))
    order = [PageIndex(page) for page in random.Random(0).sample(range(num_pages), num_pages)]
    pushers = {}
    for transport in BASELINES:
        writers = WriterFactory(PartedPages.whole(layout, pages), allow_shared_memory=transport == "shared memory")
        pushers[transport] = PagePusher(layout, writers, SECRET, lambda released: None, is_sealed=transport == "TCP")
        pushers[transport].start()
    try:
        yield Source(pages, layout, order, pushers)
    finally:
        for pusher in pushers.values():
            pusher.stop()


def loopback_s(port: int, num_bytes: int, *, is_sealed: bool = False) -> float:
    """Seconds to bring bytes through a socket, as iperf does; is_sealed: and through AES-GCM on both sides."""
    chunk, seal = memoryview(bytearray(CHUNK_BYTES)), PageSeal(KEY)
    sealed = bytearray(CHUNK_BYTES + TAG_BYTES)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        started_at = time.perf_counter()
        for size in chunk_sizes(num_bytes):
            if is_sealed:
                connection.sendall(seal.seal(b"", chunk[:size], sealed))
            else:
                connection.sendall(chunk[:size])
        connection.recv(1)
        return time.perf_counter() - started_at


def measure_bandwidth(shape: str, num_mbytes: int, num_rounds: int) -> None:
    page_bytes = layout_page_bytes(layout_of(shape))
    num_pages = max(1, int(num_mbytes * MEGABYTE) // page_bytes)
    num_bytes = num_pages * page_bytes
    segment_name = f"kvasir-bench-{secrets.token_hex(4)}"
    copied, written = np.ones(num_bytes, np.uint8), np.ones(num_bytes, np.uint8)
    seconds: dict[str, list[float]] = defaultdict(list)
    one_page: dict[str, list[float]] = defaultdict(list)
    with (
        source_of(shape, num_pages) as source,
        beside(swallow, num_bytes, num_rounds) as swallower,
        beside(serve_pages, shape, num_pages, segment_name) as server,
    ):
        port = swallower.recv()
        for transport in BASELINES:
            source.push(server, transport, num_pages)  # connections, and memory touched for the first time
        for _ in range(num_rounds):
            seconds["memory copy"].append(timed(lambda: np.copyto(written, copied)))
            seconds["loopback"].append(loopback_s(port, num_bytes))
            seconds["loopback, AES-GCM"].append(loopback_s(port, num_bytes, is_sealed=True))
            for transport in BASELINES:
                seconds[transport].append(source.push(server, transport, num_pages))
                one_page[transport].append(source.push(server, transport, 1))
    report_bandwidth(shape, num_pages, page_bytes, seconds)
    for transport, samples in one_page.items():
        print(f"  one page, {transport:<13}  {spread([sample * 1000 for sample in samples])} ms until it is there")


def report_bandwidth(shape: str, num_pages: int, page_bytes: int, seconds: dict[str, list[float]]) -> None:
    num_bytes = num_pages * page_bytes
    print(f"{shape}: {num_pages} pages of {page_bytes / 1000:.0f} kB, GB/s, and the part of its baseline in each round")
    for name, samples in seconds.items():
        rates = spread([num_bytes / sample / 1e9 for sample in samples])
        baseline = "loopback" if name == "loopback, AES-GCM" else BASELINES.get(name)
        share = ""
        if baseline is not None:
            ratios = [before / after for before, after in zip(seconds[baseline], samples, strict=True)]
            share = f"  {median(ratios):.0%} ({min(ratios):.0%} to {max(ratios):.0%}) of a {baseline}"
        print(f"  {name:<18} {rates}{share}")


# Tokens


def replica_config(role: str, transport: TransportName, chunk_tokens: int) -> ReplicaConfig:
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
        handover=HandoverConfig(transport=transport),
        segment_prefix=f"kvasir-bench-{secrets.token_hex(4)}",
    )


def measure_tokens(transport: TransportName, num_prompt_tokens: int, chunk_tokens: int, num_rounds: int) -> None:
    configs = [replica_config(role, transport, chunk_tokens) for role in ("prefill", "decode")]
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
    hidden = told.hidden_bytes / (told.pushed_bytes_tcp + told.pushed_bytes_shared_memory)
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
    transports: tuple[TransportName, ...] = ("shared-memory", "tcp")
    for transport in transports:
        measure_tokens(transport, options.prompt, options.chunk, options.rounds)


if __name__ == "__main__":
    main()
