"""Every Triton kernel compiled for the GPUs we name, without any of them: `python -m kvasir_kernels.compile_check`.

The operations are called as a model calls them, over a driver that compiles and runs nothing: what is compiled has the
launch parameters that are really used. The command rewrites compiled.md; `--check CASE…` compares these cases with it.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import triton
from triton.runtime.jit import JITFunction

from kvasir_kernels.compile_cases import CASES, KERNEL_MODULES, Case
from kvasir_kernels.compile_targets import GPUS, CompilingDriver, Gpu

TABLE = Path(__file__).with_name("compiled.md")


class CompileProblem(Exception):
    """A kernel that would be slow or could not be launched at all."""


_MATRIX_INSTRUCTIONS = r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma|v_mfma)"


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a kernel takes of the device. stack: bytes of registers that found no place, per thread."""

    registers: int
    stack: int
    shared: int
    matrix_instructions: int

    def __str__(self) -> str:
        shared = f"{self.shared / 1024:.3g} KiB" if self.shared else "–"
        return f"{self.registers} · {shared} · {self.matrix_instructions or '–'}"


def compile_case(case: Case, gpu: Gpu) -> dict[str, Compiled]:
    """What each kernel takes that the case launches, by name.

    Raises CompileProblem for a kernel that spills, and Triton's OutOfResources for one that can't be launched.
    """
    driver = CompilingDriver(gpu)
    triton.runtime.driver.set_active(driver)
    case()
    functions = [
        value
        for module in KERNEL_MODULES
        for value in vars(import_module(module)).values()
        if isinstance(value, JITFunction)
    ]
    compiled = {
        function.__name__.removeprefix("_"): _measure(kernel)
        for function in functions
        for kernel in function.device_caches[driver.device][0].values()
    }
    for name, kernel in compiled.items():
        if kernel.stack:
            raise CompileProblem(
                f"{name} spills {kernel.stack} bytes per thread on {gpu.target.arch}; make its tile smaller"
            )
    return compiled


def _measure(kernel: triton.compiler.CompiledKernel) -> Compiled:
    if "cubin" in kernel.asm:
        registers, stack = _cubin_resources(kernel.asm["cubin"])
        listing = kernel.asm["ptx"]
    else:
        listing = kernel.asm["amdgcn"]
        registers, stack = (
            int(found[1])
            for key in ("vgpr_count", "private_segment_fixed_size")
            if (found := re.search(rf"\.{key}:\s+(\d+)", listing))
        )
    return Compiled(registers, stack, kernel.metadata.shared, len(re.findall(_MATRIX_INSTRUCTIONS, listing)))


def _cubin_resources(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes of stack, per thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, f"cuobjdump -res-usage said {usage!r}"
    return int(found[1]), int(found[2])


def table_rows(names: Iterable[str]) -> list[str]:
    """One line for each kernel of each case."""
    rows = []
    for name in names:
        columns = {gpu: compile_case(CASES[name], GPUS[gpu]) for gpu in GPUS}
        for kernel in columns["sm_90"]:
            cells = " | ".join(str(column[kernel]) for column in columns.values())
            rows.append(f"| {name} | {kernel} | {cells} |")
    return rows


def render_table() -> str:
    """compiled.md."""
    return "\n".join(
        [
            "# What the kernels take",
            "",
            f"Compiled by Triton {triton.__version__} without a GPU: not a word on how fast they are. Each cell:",
            "registers per thread · shared memory per program · tensor-core instructions in the listing. None spills.",
            "Written by `python -m kvasir_kernels.compile_check`.",
            "",
            "| case | kernel | " + " | ".join(GPUS) + " |",
            "|---" * (2 + len(GPUS)) + "|",
            *table_rows(CASES),
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m kvasir_kernels.compile_check", description=__doc__)
    parser.add_argument("--check", nargs="+", choices=list(CASES), metavar="CASE", help="compare with compiled.md")
    options = parser.parse_args()
    if options.check is None:
        TABLE.write_text(render_table())
        return 0
    written = TABLE.read_text()
    rows = table_rows(options.check)
    if f"Triton {triton.__version__} " not in written:
        print(f"compiled.md was written by another Triton than {triton.__version__}: figures are not compared")
        return 0
    stale = [row for row in rows if row not in written]
    print("\n".join([f"compiled.md lacks: {row}" for row in stale] or [f"{len(rows)} rows are as written"]))
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main())
