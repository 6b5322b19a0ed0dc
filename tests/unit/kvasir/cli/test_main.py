import subprocess
import sys

import pytest

from kvasir.cli.main import main

HEAVY = ("torch", "ray", "fastapi", "transformers", "rich", "httpx")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["serve", "--help"], ["bench", "serve", "--help"]])
def test_help_and_version_load_nothing_heavy(arguments):
    code = (
        "import sys\n"
        "from kvasir.cli.main import main\n"
        f"try: main({arguments!r})\n"
        f"except SystemExit: print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.endswith("LOADED []\n")


def test_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("kvasir 0.")


def test_unknown_flag_is_one_line_and_exit_code_2(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--frobnicate"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "kvasir: error: unrecognized arguments: --frobnicate; see `kvasir --help`\n"


def test_missing_command_is_told(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "COMMAND" in capsys.readouterr().err


def test_missing_model_folder_is_one_line_and_exit_code_1(capsys, tmp_path):
    assert main(["serve", str(tmp_path / "nowhere")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"kvasir: error: no model folder {tmp_path}/nowhere; give a folder with config.json")
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", ["status", "chat"])
def test_commands_say_so_when_nothing_listens(command, capsys):
    assert main([command, "--url", "http://127.0.0.1:9"]) == 1
    assert capsys.readouterr().err == (
        "kvasir: error: nothing listens on http://127.0.0.1:9; start it with `kvasir serve` or give --url\n"
    )


def test_the_package_runs_as_the_command():
    run = subprocess.run([sys.executable, "-m", "kvasir", "--version"], capture_output=True, text=True)
    assert run.stdout.startswith("kvasir 0.")
