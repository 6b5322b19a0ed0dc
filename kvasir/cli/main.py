"""The `kvasir` command. Every subcommand imports what it needs when it runs, so that --help answers at once."""

import argparse
import sys
from collections.abc import Sequence

from kvasir.cli.bench_options import add_bench_options
from kvasir.cli.cluster_options import (
    add_address,
    add_cluster_name,
    add_doctor_options,
    add_down_options,
    add_up_options,
)
from kvasir.cli.offline_options import add_build_options, add_tune_options
from kvasir.cli.options import add_serve_options
from kvasir_protocol.errors import KvasirError

DEFAULT_URL = "http://127.0.0.1:8000"

INTERRUPTED = 130
"""The shell's exit code of a command that Ctrl-C ended."""


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"kvasir {version('kvasir')}")
        parser.exit()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        """One line, as all errors of this command."""
        self.exit(2, f"kvasir: error: {message}; see `{self.prog} --help`\n")


def build_parser() -> argparse.ArgumentParser:
    """Everything that may stand on the command line."""
    parser = _Parser(prog="kvasir", description="Serve large language models on one machine or on many.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and leave")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve", help="serve a model on this host", description="Serve a model on this host until Ctrl-C."
    )
    add_serve_options(serve)
    plan = commands.add_parser(
        "plan",
        help="what a model takes and gives on this host",
        description="Memory, longest context, concurrency and speed at best; nothing is loaded.",
    )
    add_serve_options(plan)
    plan.add_argument("--json", action="store_true", help="print the figures as JSON")
    add_build_options(commands.add_parser("build", help="make a model ready to start at once"))
    add_tune_options(commands.add_parser("tune", help="measure which tiles the GPU's kernels should take"))
    up = commands.add_parser(
        "up",
        help="make a cluster, or change it, on a Ray that runs",
        description="Make the cluster on a running Ray as FILE says; what is so already stays as it is.",
    )
    add_up_options(up)
    add_down_options(
        commands.add_parser(
            "down",
            help="take away what up made",
            description="Take away all that `kvasir up` made, and wait for its end.",
        )
    )
    add_doctor_options(
        commands.add_parser(
            "doctor",
            help="find what is wrong with hosts, and how to put it right",
            description="Look at this host; with --ray-file at how others are reached; with --address at a Ray.",
        )
    )
    status = commands.add_parser("status", help="show the replicas of a running server and what they do")
    add_cluster_name(status)
    add_address(status, default=None)
    status.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")
    chat = commands.add_parser(
        "chat",
        help="talk to a running server",
        description="Talk to a running server. /clear forgets, /exit or Ctrl-D leaves, Ctrl-C stops an answer.",
    )
    for command in (status, chat):
        command.add_argument("--url", default=DEFAULT_URL, help="where it listens (default: %(default)s)")
        command.add_argument("--api-key", metavar="KEY", help="default: the environment's KVASIR_API_KEY")
    chat.add_argument("--model", metavar="NAME", help="with whom to talk (default: the first of /v1/models)")
    chat.add_argument("--system", metavar="TEXT", help="a system message before the talk")
    chat.add_argument("--max-tokens", type=int, metavar="N", help="the longest answer")
    add_bench_options(commands.add_parser("bench", help="measure what it costs"))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0 done or stopped as wished, 1 failed, 2 not understood."""
    options = build_parser().parse_args(arguments)
    try:
        match options.command:
            case "serve":
                from kvasir.cli.serve import serve

                return serve(options)
            case "status":
                from kvasir.cli.status import show_status

                return show_status(options)
            case "up":
                from kvasir.cli.up import up

                return up(options)
            case "doctor":
                from kvasir.cli.doctor import examine

                return examine(options)
            case "down":
                from kvasir.cli.up import down

                return down(options)
            case "plan":
                from kvasir.cli.plan import show_plan

                return show_plan(options)
            case "build":
                from kvasir.cli.build import build

                return build(options)
            case "tune":
                from kvasir.cli.tune import show_tuning

                return show_tuning(options)
            case "bench":
                from kvasir.cli.bench import run_bench

                return run_bench(options)
            case _:
                from kvasir.cli.chat import Chat, talk

                return talk(Chat(options.url, options.api_key, options.system, options.max_tokens, options.model))
    except KvasirError as error:
        print(f"kvasir: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
