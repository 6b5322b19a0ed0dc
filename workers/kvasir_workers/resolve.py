"""What "auto" stands for: on this machine, with this checkpoint."""

import torch

from kvasir_protocol.config import EngineConfig, ModelConfig
from kvasir_protocol.errors import ConfigError
from kvasir_workers.model.spec import DecoderSpec
from kvasir_workers.quantization.scheme import QuantizationSpec, find_scheme


def resolve_device(config: EngineConfig) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if config.device == "cuda" and not has_cuda:
        raise ConfigError("device cuda was asked for, but torch finds no CUDA device; use --device cpu")
    return torch.device("cuda" if config.device != "cpu" and has_cuda else "cpu")


def resolve_dtype(model: ModelConfig, spec: DecoderSpec) -> torch.dtype:
    """The dtype that was asked for, or (auto) the one that the checkpoint's config.json names."""
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return dtypes[spec.dtype if model.dtype == "auto" else model.dtype]


def resolve_quantization(model: ModelConfig, device: torch.device) -> QuantizationSpec | None:
    """The scheme that was asked for. Raises ConfigError for one that there is not, or not on this device."""
    scheme = find_scheme(model.quantization)
    if scheme is not None and device.type != "cpu":
        raise ConfigError(f"quantization {scheme.name} is for CPUs so far; leave it out, or use --device cpu")
    return scheme
