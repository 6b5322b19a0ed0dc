"""The flags of what is done once before a model is served: `kvasir build` and `kvasir tune`."""

import argparse
from pathlib import Path
from typing import get_args

from kvasir_protocol.config import DType


def add_tune_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="a folder in Hugging Face format")
    add("--dtype", choices=get_args(DType), default="auto")
    add("--device", choices=("cuda",), default="cuda", help="only GPUs have tiles (default: %(default)s)")
    add("--tensor-parallel-size", type=int, metavar="N", default=1, help="ranks that share each layer")
    add("-o", "--output", type=Path, metavar="FILE", help="where to write (default: what this user's servers look up)")
