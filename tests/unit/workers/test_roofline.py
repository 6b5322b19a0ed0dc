"""Predictions follow from bytes and products."""

import pytest
import torch

from kvasir_kernels.float8.reference import FLOAT8
from kvasir_workers.model.decoder import Decoder
from kvasir_workers.model.spec import read_spec
from kvasir_workers.roofline import DeviceRates, ModelWork, decode_s, measure_rates, prefill_s

SPEC = read_spec(
    {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 500,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 128,
    }
)
WORK = ModelWork.of(SPEC, torch.bfloat16)
SLOW_MEMORY = DeviceRates(bytes_per_s=1.0, flops_per_s=1e30)
SLOW_PRODUCTS = DeviceRates(bytes_per_s=1e30, flops_per_s=1.0)


def test_every_matrix_of_the_decoder_is_counted_once() -> None:
    decoder = Decoder(SPEC, torch.float32, torch.device("meta"))
    matrices = {name: p.numel() for name, p in decoder.named_parameters() if p.dim() == 2}
    embedding = SPEC.vocab_size * SPEC.hidden_size
    assert WORK.head_products == embedding
    assert WORK.num_products + WORK.head_products == sum(matrices.values()) - embedding


def test_kv_bytes_are_those_of_all_layers() -> None:
    assert WORK.kv_bytes == 2 * 3 * 2 * 8 * 2


def test_an_int8_cache_is_read_with_the_scale_of_each_head_of_each_token() -> None:
    wide, float8, int8 = (ModelWork.of(SPEC, torch.float32, None, dtype) for dtype in (None, FLOAT8, torch.int8))
    assert wide.kv_bytes == 4 * float8.kv_bytes
    assert int8.kv_bytes == float8.kv_bytes + 2 * 3 * 2 * 4


def test_single_token_is_bound_by_reading_the_weights_and_its_context() -> None:
    assert decode_s(WORK, SLOW_MEMORY, 1, 10) == WORK.read_bytes + 10 * WORK.kv_bytes
    assert decode_s(WORK, SLOW_MEMORY, 4, 10) == WORK.read_bytes + 40 * WORK.kv_bytes


def test_products_grow_with_the_batch_and_the_context() -> None:
    one = decode_s(WORK, SLOW_PRODUCTS, 1, 0)
    assert one == 2 * (WORK.num_products + WORK.head_products)
    assert decode_s(WORK, SLOW_PRODUCTS, 8, 0) == 8 * one
    assert decode_s(WORK, SLOW_PRODUCTS, 1, 7) - one == 2 * 7 * WORK.attention_products


def test_prompt_computes_one_row_of_the_head() -> None:
    expected = 2 * (100 * WORK.num_products + 100 * 50 * WORK.attention_products + WORK.head_products)
    assert prefill_s(WORK, SLOW_PRODUCTS, 100) == pytest.approx(expected)


def test_rates_of_this_device_are_of_this_world() -> None:
    rates = measure_rates(torch.device("cpu"), torch.float32)
    assert 1e7 < rates.bytes_per_s < 1e14
    assert 1e7 < rates.flops_per_s < 1e17
