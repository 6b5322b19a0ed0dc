"""Kernels that were compiled before, elsewhere: Triton finds them in a folder before it looks into its own cache."""

import json
from pathlib import Path

import triton
from triton.runtime.cache import FileCacheManager

_GROUP = "__grp__"
"""How Triton begins the name of the file that lists a kernel's files."""


def use_prebuilt(folder: Path) -> None:
    """For this process from now on. The folder is only read; what it lacks is compiled into Triton's own cache."""

    class PrebuiltCache(FileCacheManager):  # type: ignore[misc]
        def get_group(self, filename: str) -> dict[str, str] | None:
            """Where the files are now: the list has the paths that they were written under."""
            place = folder / self.key
            try:
                names = json.loads((place / f"{_GROUP}{filename}").read_text())["child_paths"]
            except (OSError, ValueError, KeyError):
                own: dict[str, str] | None = super().get_group(filename)
                return own
            return {name: str(place / name) for name in names if (place / name).is_file()}

    triton.knobs.cache.manager_class = PrebuiltCache
