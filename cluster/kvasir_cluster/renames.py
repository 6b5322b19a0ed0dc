"""Which models stay the same when something else is wanted: their replicas stay, under another name perhaps. Pure."""

import dataclasses

from kvasir_protocol.config import ClusterConfig, ModelConfig, model_key
from kvasir_protocol.errors import ConfigError

WEIGHT_SETTINGS = ("path", "dtype", "quantization")
"""Of a model: with others of these, answers are others."""


def check_same_models(present: ClusterConfig, wanted: ClusterConfig) -> None:
    """Raise ConfigError if answers of two models would mix while replicas are replaced one at a time."""
    _check_same_model(present.model, wanted.model, "the first model")
    later = {model.served_name: model for model in wanted.all_models}
    for model in present.all_models:
        if model.served_name in later:
            _check_same_model(model, later[model.served_name], repr(model.served_name))


def _check_same_model(present: ModelConfig, wanted: ModelConfig, which: str) -> None:
    for name in WEIGHT_SETTINGS:
        old, new = getattr(present, name), getattr(wanted, name)
        if old != new:
            raise ConfigError(
                f"model.{name} is {old} and can't become {new} for {which} while the cluster serves: streams would go "
                "on with another model; `kvasir down` first, or use another name"
            )


def find_renames(present: ClusterConfig, wanted: ClusterConfig) -> dict[str, str]:
    """New served names by old ones, of models after the first, whose place tells which it is.

    A name that goes and one that comes are one model's if the weights are the same.
    """
    before, after = _names(present), _names(wanted)
    going = [model for model in present.models if model.served_name not in after]
    renames: dict[str, str] = {}
    for model in wanted.models:
        if model.served_name in before:
            continue
        same = next((old for old in going if _weights(old) == _weights(model)), None)
        # Replicas of two models would have the same names if one took over the key of another that is still there.
        if same is not None and model_key(model.served_name) not in _keys(present) - {model_key(same.served_name)}:
            going.remove(same)
            renames[same.served_name] = model.served_name
    return renames


def rename_models(config: ClusterConfig, renames: dict[str, str]) -> ClusterConfig:
    """The configuration with the names that `find_renames` found."""
    return dataclasses.replace(
        config,
        models=tuple(
            dataclasses.replace(model, served_name=renames.get(model.served_name, model.served_name))
            for model in config.models
        ),
        pools=tuple(dataclasses.replace(pool, model=renames.get(pool.model, pool.model)) for pool in config.pools),
    )


def _names(config: ClusterConfig) -> set[str]:
    return {model.served_name for model in config.all_models}


def _keys(config: ClusterConfig) -> set[str]:
    return {model_key(model.served_name) for model in config.models}


def _weights(model: ModelConfig) -> tuple[object, ...]:
    return tuple(getattr(model, name) for name in WEIGHT_SETTINGS)
