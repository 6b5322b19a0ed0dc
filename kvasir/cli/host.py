"""What this host has and holds: hardware, and the model's folder."""

import contextlib
import importlib.metadata
import json
import os
from collections.abc import Iterator
from pathlib import Path

from kvasir_cluster.pools import Hardware
from kvasir_protocol.config import ClusterConfig, ModelConfig, PoolConfig
from kvasir_protocol.config_tree import blame
from kvasir_protocol.errors import CheckpointError, ConfigError
from kvasir_workers.engine_directory.manifest import is_engine_directory, settle
from kvasir_workers.model.spec import check_max_model_len, read_spec
from kvasir_workers.parallel.mesh import GangShape, check_shape


def find_hardware() -> Hardware:
    """Cores that this process may use, and GPUs that the installed torch can."""
    return Hardware(num_cores=len(os.sched_getaffinity(0)), num_gpus=_count_gpus())


def has_one_gpu(hardware: Hardware) -> bool:
    """Whether one replica is to do all unless somebody says otherwise: a second one would need the GPU, too."""
    return hardware.num_gpus == 1


def _count_gpus() -> int:
    if importlib.metadata.version("torch").endswith("+cpu"):
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip()])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def check_models(config: ClusterConfig) -> None:
    """The same for all models of a cluster, each with its pools. Raises ConfigError, with the setting to blame."""
    for model in config.all_models:
        place = config.place_of(model)
        with _blaming(place, ("max_model_len",), f"{place}.path"):
            check_model(model)
    for index, pool in enumerate(config.pools):
        with _blaming(f"pools[{index}]", ("tensor_parallel_size", "pipeline_parallel_size"), f"pools[{index}]"):
            check_model(config.model_of(pool), (pool,))


@contextlib.contextmanager
def _blaming(where: str, settings: tuple[str, ...], otherwise: str) -> Iterator[None]:
    """Errors of the block with the path of a setting: that of the settings of where which they name, or otherwise."""
    try:
        yield
    except (CheckpointError, ConfigError) as error:
        found = blame(str(error), settings, where)
        raise ConfigError(str(error), found if found != where else otherwise) from error


def check_model(model: ModelConfig, pools: tuple[PoolConfig, ...] = ()) -> None:
    """Raise CheckpointError or ConfigError for what no replica could load; weights are checked when they load."""
    path = Path(model.path)
    _check_folder(path)
    spec = read_spec(_read_config(path / "config.json"), str(path / "config.json"))
    check_max_model_len(model.max_model_len, spec.max_position_embeddings)
    for pool in pools:
        shape = GangShape.of(pool)
        check_shape(spec, shape)
        settle(model, shape)


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
    if not is_engine_directory(path) and not any(path.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise CheckpointError(f"{path} is not a complete model folder: {', '.join(missing)} missing")
