"""Prefill replica, decode replica and router, each a process started by hand, with the demo model; no Ray."""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from kvasir.demo import DEMO_MODEL_NAME, demo_model_path

START_S = 60.0
STOP_S = 20.0
PAGE_BYTES = 6 * 2 * 16 * 4 * 32 * 4


class Stack:
    """The three processes. kill takes "prefill" or "decode"."""

    def __init__(self, directory: Path, transport: str) -> None:
        self._directory = directory
        self._secret = directory / "secret"
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self.segment_prefix = f"kvasir-stack-{os.getpid()}-{directory.name}"
        self._transport = transport
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def start(self) -> None:
        """Return when the router reaches both replicas."""
        endpoints = {role: self._start_replica(role) for role in ("prefill", "decode")}
        self._start_router(",".join(f"{role}@{endpoint}" for role, endpoint in endpoints.items()))

    def _start_replica(self, role: str) -> str:
        config: Mapping[str, object] = {
            "replica_id": f"{role}-0",
            "role": role,
            "model": {"path": str(demo_model_path()), "served_name": DEMO_MODEL_NAME, "dtype": "float32"},
            "engine": {"num_threads": 1, "kv_cache_bytes": 300 * PAGE_BYTES, "max_num_seqs": 64},
            "handover": {"transport": self._transport},
            "segment_prefix": self.segment_prefix,
        }
        file = self._directory / f"{role}.yaml"
        file.write_text(yaml.safe_dump(config))
        self._start(role, "kvasir_workers.replica", "--config", str(file), "--secret-file", str(self._secret))
        return self._last_word_printed_by(role)

    def _start_router(self, replicas: str) -> None:
        self._start(
            "router",
            "kvasir_router",
            *("--model", str(demo_model_path()), "--served-model-name", DEMO_MODEL_NAME),
            *("--replicas", replicas, "--secret-file", str(self._secret), "--fd", str(self._listener.fileno())),
            inherited=(self._listener.fileno(),),
        )
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            status = httpx.get(f"{self.url}/status", timeout=START_S).json()
            if all(replica["state"] == "up" for replica in status["replicas"]):
                return
        raise AssertionError("the router did not reach both replicas")

    def _start(self, name: str, module: str, *arguments: str, inherited: tuple[int, ...] = ()) -> None:
        self._processes[name] = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=inherited,
        )

    def _last_word_printed_by(self, name: str) -> str:
        """A replica prints one line that ends with its address when it serves."""
        output = self._processes[name].stdout
        assert output is not None, "its output is piped"
        assert select.select([output], [], [], START_S)[0], f"{name} printed nothing within {START_S} s"
        line = output.readline().split()
        assert line, f"{name} ended with {self._processes[name].wait(STOP_S)}"
        return line[-1]

    def kill(self, role: str) -> None:
        self._processes[role].kill()
        self._processes[role].wait(STOP_S)

    def stop(self) -> None:
        """End whatever was started."""
        for process in reversed(self._processes.values()):
            process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            process.wait(STOP_S)
            assert process.stdout is not None, "its output is piped"
            process.stdout.close()
        self._listener.close()

    def segments(self) -> list[Path]:
        return list(Path("/dev/shm").glob(f"{self.segment_prefix}-*"))

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def stream_chat(self, question: str, **options: Any) -> Iterator[str]:
        """The pieces of an answer as they come; greedy unless told otherwise."""
        messages = [{"role": "user", "content": question}]
        settings = {"model": DEMO_MODEL_NAME, "messages": messages, "temperature": 0, "stream": True} | options
        create: Any = self.client().chat.completions.create
        for chunk in create(**settings):
            if chunk.choices and chunk.choices[0].delta.content:
                yield chunk.choices[0].delta.content

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a series over the labels that are left open."""
        families = text_string_to_metric_families(httpx.get(f"{self.url}/metrics").text)
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        assert samples, f"no series {name}"
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


@pytest.fixture(scope="package", params=["shared-memory", "tcp"])
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One stack for all tests that leave it as they found it."""
    stack = Stack(tmp_path_factory.mktemp(f"stack-{request.param}"), request.param)
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()
    assert not stack.segments()


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[Stack]:
    """A stack in which things may be killed."""
    stack = Stack(tmp_path, "auto")
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()
        for segment in stack.segments():
            segment.unlink()
