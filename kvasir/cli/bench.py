"""`kvasir bench`: what it costs, in numbers."""

import argparse
import json
from dataclasses import asdict

from rich.console import Console
from rich.progress import track
from rich.table import Table


def run_bench(options: argparse.Namespace) -> int:
    """Measure and print. Raises KvasirError."""
    match options.bench:
        case "serve":
            from kvasir.cli.bench_serve import bench_serve

            return bench_serve(options)
        case "throughput" | "latency":
            from kvasir.cli.bench_offline import bench_offline

            return bench_offline(options)
        case "startup":
            from kvasir.cli.bench_startup import bench_startup

            return bench_startup(options)
        case "compare":
            from kvasir.cli.bench_compare import bench_compare

            return bench_compare(options)
        case name:
            assert name == "step", name
            return _bench_step(options)


def _bench_step(options: argparse.Namespace) -> int:
    """Raises ConfigError for sizes that can't be."""
    from kvasir.bench.step import StepBench
    from kvasir_protocol.errors import ConfigError

    sizes = [*options.sequences, options.steps - 1, options.prompt_tokens]
    if min(sizes) < 1 or options.device_ms < 0:
        raise ConfigError("--sequences and --prompt-tokens must be at least 1, --steps 2, and --device-ms 0")
    bench = StepBench(num_steps=options.steps, prompt_tokens=options.prompt_tokens, device_s=options.device_ms / 1000)
    console = Console(stderr=True)
    costs = [bench.measure(number) for number in track(options.sequences, "Measuring", console=console, transient=True)]
    if options.json:
        print(json.dumps([asdict(cost) for cost in costs], indent=2))
        return 0
    table = Table(box=None, pad_edge=False, header_style="bold")
    device = f"device of {options.device_ms:g} ms"
    for column in ("sequences", "host us", "p90", f"{device}: plain us", "overlapped us", "hidden"):
        table.add_column(column, justify="right")
    for cost in costs:
        exposed = max(0.0, cost.overlapped_us - cost.device_us) / max(1e-9, cost.plain_us - cost.device_us)
        table.add_row(
            str(cost.num_sequences),
            *(f"{us:,.0f}" for us in (cost.host_us, cost.host_p90_us, cost.plain_us, cost.overlapped_us)),
            f"{100 * (1 - exposed):.0f} %",
        )
    Console(highlight=False).print(table)
    return 0
