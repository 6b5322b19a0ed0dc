"""What an engine directory computes with beside its weights: the model's config, and scales of an 8-bit cache.

With others of them the same weights give other keys and values, while the directory keeps its fingerprint: replicas of
the checkpoint would take its pages for theirs.
"""

from pathlib import Path

from kvasir_protocol.errors import CheckpointError
from kvasir_workers.engine_directory.manifest import Manifest, SettingsFile, build_command
from kvasir_workers.engine_directory.tensor_file import sha256_of

CACHE_SCALES = "weights/cache-scales.safetensors"
"""A checkpoint's scales of its cache, for all ranks; not there where it has none."""

_FILES = ("config.json", CACHE_SCALES)


def settings_in(directory: Path) -> tuple[SettingsFile, ...]:
    """All that there are, a few kilobytes."""
    found = [name for name in _FILES if (directory / name).is_file()]
    return tuple(SettingsFile(file=name, sha256=sha256_of(directory / name)) for name in found)


def check_settings(directory: Path, manifest: Manifest) -> None:
    """Raise CheckpointError where one isn't what was built, is gone, or has come since."""
    changed = sorted({each.file for each in set(settings_in(directory)) ^ set(manifest.settings)})
    if changed:
        raise CheckpointError(
            f"{directory}: {' and '.join(changed)} changed after it was built; change the checkpoint, and build the "
            f"directory again: `{build_command(manifest, str(directory))}`"
        )
