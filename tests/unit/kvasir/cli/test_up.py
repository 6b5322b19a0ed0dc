"""What `kvasir up` refuses before it asks any Ray, each with the line and what to do; and how it waits."""

import io

import pytest

from kvasir.cli.main import main
from kvasir.cli.phases import Phases
from kvasir.cli.up import wait_until_ready
from kvasir_cluster.report import Progress
from kvasir_cluster.router_host import RouterState
from kvasir_protocol.errors import ServiceUnavailable
from tests.unit.kvasir.cli.bare_model import make_bare_model


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    return make_bare_model(folder)


def refusal(tmp_path, capsys, text):
    (tmp_path / "cluster.yaml").write_text(text)
    assert main(["up", str(tmp_path / "cluster.yaml"), "--yes"]) == 1
    return capsys.readouterr().err.removeprefix(f"kvasir: error: {tmp_path}/")


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("  path: /nowhere\n", "cluster.yaml:2: no model folder /nowhere; give a folder with"),
        ("  path: {}\n  max_model_len: 513\n", "cluster.yaml:3: max_model_len 513 is beyond the model's 512 positions"),
        (
            "  path: {}\npools:\n  - role: mixed\n    tensor_parallel_size: 3\n",
            "cluster.yaml:5: tensor_parallel_size 3 does not divide the model's 4 heads; set one of 1, 2, 4",
        ),
        (
            "  path: {}\npools:\n  - role: prefill\n  - role: decode\n    pipeline_parallel_size: 4\n",
            "cluster.yaml:6: pipeline_parallel_size 4 is above the model's 3 layers; lower it",
        ),
        (
            "  path: {}\nmodels:\n  - path: /nowhere\n    served_name: s\npools:\n  - role: mixed\n"
            "  - {{role: mixed, model: s}}\n",
            "cluster.yaml:4: no model folder /nowhere",
        ),
        (
            "  path: {}\nmodels:\n  - path: {}\n    served_name: model\npools:\n  - role: mixed\n"
            "  - {{role: mixed, model: model}}\n",
            "cluster.yaml:3: models need served names that differ",
        ),
    ],
    ids=["folder", "context", "heads", "layers", "a second folder", "the name that the first has of its folder"],
)
def test_what_a_model_does_not_allow_is_refused_with_the_line_that_asks_for_it(tmp_path, folder, capsys, rest, said):
    text = "model:\n" + rest.format(*[folder] * rest.count("{}"))
    assert refusal(tmp_path, capsys, text).startswith(said)


def test_a_mistake_of_form_is_refused_with_its_line(tmp_path, capsys):
    said = refusal(tmp_path, capsys, "name: main\npools:\n\t- role: mixed\n")
    assert said.startswith("cluster.yaml:3: is not YAML") and said.endswith("; indent with spaces\n")


class Controller:
    """Answers what it was given, one after the other."""

    def __init__(self, *answers):
        self._answers = iter(answers)

    def poll(self, timeout_s):
        del timeout_s
        return next(self._answers)


def progress(phase="ready", failure=None, **told):
    router = RouterState(url="http://h:1", num_live=None if failure else 1, failure=failure)
    told = {"news": (), **told}
    return Progress(process_id=1, phase=phase, gangs=(("mixed-0", "ready"),), routers=(("h", router),), **told)


def test_news_are_told_once_until_all_serve():
    output = io.StringIO()
    told, ready = progress("waiting for mixed-0", news=("old", "starting mixed-0")), progress(news=("old", "new", "er"))
    assert wait_until_ready(Phases(output), Controller(None, told, ready), num_told=1) is ready
    assert [line.strip() for line in output.getvalue().splitlines()] == ["starting mixed-0", "er"]


def test_what_can_not_come_up_is_not_waited_for():
    with pytest.raises(ServiceUnavailable, match=r"no room\. Correct the file"):
        wait_until_ready(Phases(io.StringIO()), Controller(progress("waiting", fatal="no room")), num_told=0)


def test_a_router_that_can_not_serve_is_not_waited_for_once_all_replicas_do():
    taken = "can't listen on h port 1"
    controller = Controller(progress("waiting for mixed-0", failure=taken), progress(failure=taken))
    with pytest.raises(ServiceUnavailable, match=rf"router on h: {taken}\. Put that right"):
        wait_until_ready(Phases(io.StringIO()), controller, num_told=0)
