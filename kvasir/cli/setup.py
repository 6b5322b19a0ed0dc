"""Everything that is settled, and may be refused, before `kvasir serve` starts its first process."""

import argparse
import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvasir.cli.host import check_models, find_hardware, has_one_gpu
from kvasir.cli.instance import Instance, new_instance, remove_dead_instances
from kvasir.cli.options import make_config
from kvasir_cluster.listening import find_control_port, listen
from kvasir_cluster.local_ray import LOOPBACK
from kvasir_cluster.pools import Hardware, resolve
from kvasir_protocol.config import ClusterConfig
from kvasir_protocol.errors import ConfigError
from kvasir_protocol.sockets import load_or_create_secret

LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What one server is made of. listener is bound already; control_port is where the controller will be."""

    config: ClusterConfig
    hardware: Hardware
    listener: socket.socket
    instance: Instance
    secret_file: Path
    control_port: int
    log_level: str

    @property
    def controller_endpoint(self) -> str:
        return f"tcp://{LOOPBACK}:{self.control_port}"

    @property
    def shows_ray_logs(self) -> bool:
        """The logs of replicas and controller go to the terminal only on request."""
        return self.log_level in ("debug", "info")


@contextlib.contextmanager
def prepare(options: argparse.Namespace) -> Iterator[Setup]:
    """Settle it; what it put on this host is gone after the block. Raises KvasirError."""
    hardware = find_hardware()
    config = resolve(make_config(options, default_is_mixed=has_one_gpu(hardware)), hardware)
    check_models(config)
    secret_file = find_secret_file()
    log_level = read_log_level()
    remove_dead_instances()
    with listen(config.router.host or LOOPBACK, config.router.port) as listener, new_instance() as instance:
        instance.note_port(listener.getsockname()[1])
        yield Setup(
            config=config,
            hardware=hardware,
            listener=listener,
            instance=instance,
            secret_file=secret_file,
            control_port=find_control_port(LOOPBACK),
            log_level=log_level,
        )


def find_secret_file() -> Path:
    """The cluster secret of this user, made at first use. Raises ConfigError."""
    secret_file = Path(os.environ.get("KVASIR_HOME", "~/.kvasir")).expanduser() / "secret"
    load_or_create_secret(secret_file)
    return secret_file


def read_log_level() -> str:
    """What the environment asks for. Raises ConfigError."""
    level = os.environ.get("KVASIR_LOG_LEVEL", "warning").lower()
    if level not in LOG_LEVELS:
        raise ConfigError(f"KVASIR_LOG_LEVEL is {level!r}; choose one of {', '.join(LOG_LEVELS)}")
    return level
