"""The files below deploy/ray are what Ray and `kvasir up` understand."""

import re
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from kvasir.cli.options import DEMO_MODEL
from kvasir_cluster.ray_file import judge_ray_file, read_ray_file
from kvasir_protocol.config import load_config

FOLDER = Path(__file__).parents[3] / "deploy/ray"
RAY_FILES = ("on-premise.yaml", "aws-gpu.yaml", "cpu-smoke.yaml")
CLUSTER_FILES = ("gpu-cluster.yaml", "smoke-cluster.yaml")


def test_every_file_is_checked_here():
    assert sorted(path.name for path in FOLDER.glob("*.yaml")) == sorted((*RAY_FILES, *CLUSTER_FILES))


@pytest.mark.parametrize("name", RAY_FILES)
def test_ray_knows_every_key(name):
    validate_config(prepare_config(yaml.safe_load((FOLDER / name).read_text())))


@pytest.mark.parametrize("name", RAY_FILES)
def test_every_node_type_and_start_command_is_there(name):
    tree = yaml.safe_load((FOLDER / name).read_text())
    types = tree.get("available_node_types", {})
    assert tree.get("head_node_type", "head") in (types or {"head": {}})
    assert sum(kind.get("min_workers", 0) for kind in types.values()) in (tree["max_workers"], 0)
    for side in ("head", "worker"):
        commands = " ".join(tree[f"{side}_start_ray_commands"])
        assert "RAY_AUTH_MODE=token" in commands
        assert "--disable-usage-stats" in commands


@pytest.mark.parametrize("name", CLUSTER_FILES)
def test_kvasir_up_understands_it(name):
    assert load_config(FOLDER / name, {"model": DEMO_MODEL}).pools


def test_the_list_of_hosts_has_nothing_to_put_right_but_the_key():
    file = read_ray_file(FOLDER / "on-premise.yaml")
    assert file.hosts == ("10.0.0.10", "10.0.0.11", "10.0.0.12")
    assert all("no key" in finding.what for finding in judge_ray_file(file))


def test_the_readme_names_every_file():
    readme = (FOLDER / "README.md").read_text()
    named = set(re.findall(r"[\w-]+\.yaml", readme))
    assert named == {*RAY_FILES, *CLUSTER_FILES}
