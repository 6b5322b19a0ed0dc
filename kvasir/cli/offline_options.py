"""The flags of what is done once before a model is served: `kvasir build` and `kvasir tune`."""

import argparse
from pathlib import Path
from typing import get_args

from kvasir_protocol.config import DType, KvCacheDType, QuantizationName


def add_build_options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write an engine directory (weights cut, fused and quantized), which every other command takes for a MODEL."
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="a folder in Hugging Face format; with --check an engine directory")
    add("-o", "--output", type=Path, metavar="DIR", help="the engine directory to write; must not be there yet")
    add("--dtype", choices=get_args(DType), default="auto")
    add("--quantization", choices=get_args(QuantizationName), help="weights of fewer bits")
    add("--tensor-parallel-size", type=int, metavar="N", default=1, help="ranks that share each layer")
    add("--pipeline-parallel-size", type=int, metavar="N", default=1, help="stages that share the layers")
    add("--kv-cache-dtype", choices=get_args(KvCacheDType), default="auto", help="for kernels of a GPU")
    add("--target", metavar="NAME", help="compile for cpu, sm_80, sm_90, gfx942, … (default: this host's GPU, or cpu)")
    add("--check", action="store_true", help="read an engine directory through: is it what was built?")


def add_tune_options(parser: argparse.ArgumentParser) -> None:
    parser.description = "Measure the kernels' tiles for a model's shapes on this host's GPU, and write them down."
    add = parser.add_argument
    add("model", metavar="MODEL", help="a folder in Hugging Face format, or an engine directory")
    add("--dtype", choices=get_args(DType), default="auto")
    add("--quantization", choices=get_args(QuantizationName), help="products of float8 have tiles, too")
    add("--kv-cache-dtype", choices=get_args(KvCacheDType), default="auto", help="what keys and values are stored in")
    add("--tensor-parallel-size", type=int, metavar="N", help="ranks that share each layer (default: one, or as built)")
    add("-o", "--output", type=Path, metavar="FILE", help="where to write (default: what this user's servers look up)")
