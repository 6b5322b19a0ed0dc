"""All cases by name; as a program, all or those whose names begin so, in the interpreter.

It prints one JSON object: what went wrong in which, or null.
"""

import json
import os
import sys
import traceback

import torch

from tests.kernel_cases import attention, decodes, exact, matmul, pages, peers, rows, sampling
from tests.kernel_cases.checking import Case

CASES: dict[str, Case] = {
    name: case
    for module in (rows, pages, attention, decodes, matmul, sampling, peers, exact)
    for name, case in module.cases().items()
}


def run_in_interpreter(beginning: str = "") -> dict[str, str | None]:
    """What went wrong in each case."""
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    outcomes: dict[str, str | None] = {}
    for name, case in CASES.items():
        if not name.startswith(beginning):
            continue
        try:
            case(torch.device("cpu"))
            outcomes[name] = None
        except Exception:
            outcomes[name] = traceback.format_exc()
    return outcomes


if __name__ == "__main__":
    json.dump(run_in_interpreter(*sys.argv[1:]), sys.stdout)
