"""What may not be imported, and by whom, beyond what import-linter knows."""

import subprocess
import sys

import pytest
from source_files import PACKAGES, imported_modules, modules, name_of, parse

CODE_FROM_BYTES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
"""Modules that run what they read: nothing that came over a wire or from a file may meet them."""


def test_nothing_is_ever_unpickled():
    guilty = [
        f"{name_of(path)}: {module}"
        for path in modules()
        for module in imported_modules(parse(path))
        if CODE_FROM_BYTES & set(module.split("."))
    ]
    assert guilty == []


def test_no_package_has_a_generic_import_name():
    assert all(name.startswith("kvasir") for name in PACKAGES)


@pytest.mark.parametrize(
    ("module", "blocked"),
    [
        ("kvasir_protocol.wire", ("torch", "ray", "zmq", "fastapi", "transformers")),
        ("kvasir_router.app", ("torch", "triton", "transformers", "ray")),
        ("kvasir_cluster.controller", ("torch", "fastapi", "transformers", "kvasir_workers")),
        ("kvasir_workers.replica", ("ray", "fastapi", "transformers")),
        ("kvasir", ("torch", "ray", "fastapi", "transformers")),
    ],
)
def test_a_hall_stands_without_what_it_must_not_need(module, blocked):
    code = f"import sys\nsys.modules.update(dict.fromkeys({blocked!r}))\nimport {module}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
