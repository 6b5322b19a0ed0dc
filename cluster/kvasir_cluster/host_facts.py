"""What a host is like, as one of its own processes finds it."""

import array
import fcntl
import importlib.metadata
import os
import platform
import resource
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("kvasir", "ray", "torch", "pyzmq", "msgpack")

SHARED_MEMORY = Path("/dev/shm")

SIOCGIFADDR = 0x8915
"""ioctl(2) of Linux: the IPv4 address of a network interface."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """address: under which Ray knows it. interfaces: names and IPv4 addresses of its network cards."""

    name: str
    address: str
    versions: tuple[tuple[str, str], ...]
    interfaces: tuple[tuple[str, str], ...]
    shared_memory_bytes: int
    free_shared_memory_bytes: int
    max_open_files: int
    num_gpus: int

    def interface(self) -> str | None:
        """The card that has the host's address; None if none has."""
        return next((name for name, address in self.interfaces if address == self.address), None)


def find_facts(address: str) -> HostFacts:
    """Of the host of this process, which Ray knows by address."""
    shm = os.statvfs(SHARED_MEMORY)
    return HostFacts(
        name=socket.gethostname(),
        address=address,
        versions=(("python", platform.python_version()), *((name, _version(name)) for name in PACKAGES)),
        interfaces=tuple(_interfaces()),
        shared_memory_bytes=shm.f_blocks * shm.f_frsize,
        free_shared_memory_bytes=shm.f_bavail * shm.f_frsize,
        max_open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        num_gpus=len(list(Path("/proc/driver/nvidia/gpus").glob("*"))),
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _interfaces() -> list[tuple[str, str]]:
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = array.array("B", struct.pack("256s", name.encode()[:15]))
            try:
                fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)
            except OSError:
                continue
            found.append((name, socket.inet_ntoa(request[20:24].tobytes())))
    return found
