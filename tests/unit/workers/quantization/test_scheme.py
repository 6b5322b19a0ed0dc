"""The schemes: their names, what a model takes in them, and that loading makes what was planned."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from kvasir_kernels.dispatch import PackedWeight, QuantizedMatrix
from kvasir_kernels.linear.native import NativeWeight
from kvasir_kernels.linear.onednn import OneDnnWeight
from kvasir_kernels.native.choice import without_native_kernels
from kvasir_kernels.quantized_linear.native import NativeQuantizedWeight
from kvasir_protocol.config import EngineConfig, ModelConfig, QuantizationName
from kvasir_protocol.errors import ConfigError
from kvasir_workers.load import fingerprint, load_model, resolve_quantization
from kvasir_workers.model.decoder import Decoder
from kvasir_workers.model.loader import load_decoder, load_spec, weight_bytes
from kvasir_workers.quantization.scheme import SCHEMES, WeightFormat, find_scheme
from tests.checkpoints import make_checkpoint
from tests.unit.workers.model.paged_prompts import PagedPrompts

CPU = torch.device("cpu")
INTEGERS = [name for name, scheme in SCHEMES.items() if scheme.float8 is None]


def num_bytes(weight: Tensor | PackedWeight) -> int:
    match weight:
        case Tensor():
            return weight.nbytes
        case QuantizedMatrix():
            return weight.codes.nbytes + weight.scales.nbytes
        case NativeQuantizedWeight():
            return weight.packed.nbytes + weight.scales.nbytes
        case NativeWeight() | OneDnnWeight():
            return weight.packed.nbytes


def loaded_bytes(decoder: Decoder) -> int:
    matrices = [matrix.weights for matrix in decoder.matrices().values()]
    packed = sum(num_bytes(weight) for weight in matrices if not isinstance(weight, Tensor))
    return packed + sum(parameter.nbytes for parameter in decoder.parameters())


def test_settings_know_the_same_names() -> None:
    assert set(get_args(QuantizationName)) == set(SCHEMES)


def test_unknown_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="'fp3' is not known; there are int8, int4, int4-g64, int4-g128"):
        find_scheme("fp3")


def test_none_is_none() -> None:
    assert find_scheme(None) is None


def test_other_devices_are_refused(checkpoint: Path) -> None:
    model = ModelConfig(path=str(checkpoint), served_name="m", quantization="int8")
    with pytest.raises(ConfigError, match="int8 is for CPUs"):
        resolve_quantization(model, load_spec(checkpoint), torch.device("cuda"))


@pytest.mark.parametrize("name", SCHEMES)
def test_loading_takes_what_was_planned(name: str, checkpoint: Path) -> None:
    decoder = load_decoder(checkpoint, torch.bfloat16, CPU, SCHEMES[name])
    decoder.pack_weights()
    assert loaded_bytes(decoder) == weight_bytes(checkpoint, torch.bfloat16, SCHEMES[name])


@pytest.mark.parametrize(("name", "share"), [("int8", 0.54), ("int4", 0.36)])
def test_layers_take_about_as_many_bits_as_the_name_says(name: str, share: float, tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "LlamaForCausalLM", tie_word_embeddings=True)
    assert weight_bytes(path, torch.bfloat16, SCHEMES[name]) < share * weight_bytes(path, torch.bfloat16)


def test_decoder_of_8_bits_says_nearly_the_same(checkpoint: Path) -> None:
    decoders = (load_decoder(checkpoint, torch.float32, CPU, scheme) for scheme in (None, SCHEMES["int8"]))
    expected, ours = (PagedPrompts(decoder, 1).step({0: list(range(40))})[0] for decoder in decoders)
    assert torch.cosine_similarity(ours, expected, dim=-1).mean() > 0.998


@pytest.mark.parametrize("name", INTEGERS)
def test_kernels_and_torch_say_the_same(name: str, checkpoint: Path) -> None:
    ours = PagedPrompts(load_decoder(checkpoint, torch.float32, CPU, SCHEMES[name]), 1).step({0: [5, 9, 200]})[0]
    with without_native_kernels():
        decoder = load_decoder(checkpoint, torch.float32, CPU, SCHEMES[name])
        torch.testing.assert_close(ours, PagedPrompts(decoder, 1).step({0: [5, 9, 200]})[0], atol=1e-4, rtol=1e-4)


def test_a_matrix_that_a_format_does_not_take_stays_as_it_is() -> None:
    assert not WeightFormat(4).takes((8, 7))
    assert WeightFormat(8).takes((8, 7))
    assert not WeightFormat(8).takes((8,))


def test_pages_of_other_weights_are_not_taken_for_the_same(checkpoint: Path) -> None:
    names = {fingerprint(checkpoint, scheme) for scheme in (None, *SCHEMES.values())}
    assert len(names) == 1 + len(SCHEMES)


def test_an_engine_is_loaded_with_the_scheme_of_its_settings(checkpoint: Path) -> None:
    model = ModelConfig(path=str(checkpoint), served_name="m", quantization="int4")
    loaded = load_model(model, EngineConfig(device="cpu", kv_cache_bytes=2**22))
    quantized = [m.weights for m in loaded.decoder.matrices().values()]
    assert all(isinstance(weight, NativeQuantizedWeight | QuantizedMatrix) for weight in quantized)
