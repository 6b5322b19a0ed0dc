"""Build the kernels now, so that no server has to: `python -m kvasir_kernels.native`."""

import logging

from kvasir_kernels.native.library import load_library

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    load_library()
