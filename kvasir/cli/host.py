"""What this host has and holds: hardware, the model's folder, free ports."""

import importlib.metadata
import json
import os
import random
import socket
from pathlib import Path

from kvasir_cluster.pools import Hardware
from kvasir_protocol.config import ModelConfig
from kvasir_protocol.errors import CheckpointError, ConfigError
from kvasir_workers.model.spec import check_max_model_len, read_spec

CONTROL_PORTS = range(20000, 30000)
"""Below the ports that Linux gives to outgoing connections, so that none takes the controller's while it restarts."""

QUEUED_CONNECTIONS = 2048


def find_hardware() -> Hardware:
    """Cores that this process may use, and GPUs that the installed torch can."""
    return Hardware(num_cores=len(os.sched_getaffinity(0)), num_gpus=_count_gpus())


def _count_gpus() -> int:
    if importlib.metadata.version("torch").endswith("+cpu"):
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip()])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def check_model(model: ModelConfig) -> None:
    """Raise CheckpointError or ConfigError for what no replica could load; weights are checked when they load."""
    path = Path(model.path)
    _check_folder(path)
    spec = read_spec(_read_config(path / "config.json"), str(path / "config.json"))
    check_max_model_len(model.max_model_len, spec.max_position_embeddings)


def _read_config(file: Path) -> dict[str, object]:
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} can't be read: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} is no model's configuration; it should hold a map")
    return config


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise CheckpointError(
            f"no model folder {path}; give a folder with config.json, tokenizer.json and *.safetensors, "
            "such as `hf download NAME --local-dir FOLDER` makes"
        )
    missing = [name for name in ("config.json", "tokenizer.json") if not (path / name).is_file()]
    if not any(path.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise CheckpointError(f"{path} is not a complete model folder: {', '.join(missing)} missing")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, for the router to inherit; port 0 lets the system choose. Raises ConfigError."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ConfigError(f"can't listen on {host!r}: {error.strerror}") from error
    listener = socket.socket(family, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        # At once: two sockets may be bound to one port, but only one may listen.
        listener.listen(QUEUED_CONNECTIONS)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"can't listen on {host} port {port}: {error.strerror}; choose another with --port"
        ) from error
    return listener


def find_control_port() -> int:
    """A port on the loopback interface that nobody listens on."""
    for port in random.sample(CONTROL_PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ConfigError(f"no free port between {CONTROL_PORTS.start} and {CONTROL_PORTS.stop} for the controller")


def url_of(listener: socket.socket) -> str:
    """Where a client on this host reaches it."""
    host, port = listener.getsockname()[:2]
    match host:
        case "0.0.0.0":
            host = "127.0.0.1"
        case "::":
            host = "[::1]"
        case _ if ":" in host:
            host = f"[{host}]"
    return f"http://{host}:{port}"
