"""Packages that name kernels of their own, as pip would have installed them."""

from pathlib import Path


def install_kernels(directory: Path, entry_points: str) -> None:
    """To whom the directory is on Python's path, entry points of the group `kvasir.kernels` are these lines."""
    metadata = directory / "theirs-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[kvasir.kernels]\n{entry_points}\n")
