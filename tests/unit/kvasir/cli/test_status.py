import io

from rich.console import Console

from kvasir.cli.status import make_table


def answer(uptime_s, generated=0, computed=0, stats=True):
    counters = {
        "computed_prompt_tokens": computed,
        "generated_tokens": generated,
        "cached_prompt_tokens": 30,
        "prompt_tokens": 40,
    }
    replica = {
        "id": "decode-0",
        "role": "decode",
        "state": "up" if stats else "down",
        "stats": {
            "num_running": 3,
            "num_waiting": 1,
            "num_pages": 100,
            "num_used_pages": 7,
            "resident_bytes": 5 * 2**20,
            "engine": counters,
        }
        if stats
        else None,
    }
    return {"uptime_s": uptime_s, "replicas": [replica]}


def cells(before, after):
    output = io.StringIO()
    Console(file=output, width=120).print(make_table(before, after))
    return output.getvalue().splitlines()[1].split()


def test_row_tells_the_load_and_the_rates_between_two_looks():
    row = cells(answer(10.0, generated=100, computed=1000), answer(12.0, generated=150, computed=1500))
    assert row == ["decode-0", "decode", "up", "3", "1", "7/100", "250.0", "25.0", "75", "%", "5", "MiB"]


def test_replica_without_statistics_is_shown_as_it_is():
    assert cells(answer(1.0, stats=False), answer(2.0, stats=False)) == ["decode-0", "decode", "down", *["-"] * 7]


def test_newcomer_has_no_rate_yet():
    assert cells({"uptime_s": 1.0, "replicas": []}, answer(2.0))[6:8] == ["-", "-"]
