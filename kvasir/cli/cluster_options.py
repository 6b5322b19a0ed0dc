"""The flags of the commands that work on a Ray cluster."""

import argparse
from pathlib import Path


def add_up_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the cluster as YAML")
    _add_consent(parser)
    add_address(parser, default="auto")


def add_down_options(parser: argparse.ArgumentParser) -> None:
    add_cluster_name(parser)
    _add_consent(parser)
    add_address(parser, default="auto")


def add_doctor_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ray-file", type=Path, metavar="FILE", help="a file of `ray up`: try ssh to its hosts")
    add_address(parser, default=None)


def add_cluster_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", default="main", metavar="NAME", help="of the cluster (default: main)")


def add_address(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Which Ray; with a default of None, only if it is asked for."""
    said = "the Ray of this host" if default else "no Ray is asked"
    parser.add_argument(
        "--address", default=default, metavar="HEAD:PORT", help=f"of Ray, or auto on one of its hosts (default: {said})"
    )


def _add_consent(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="go ahead without asking")
