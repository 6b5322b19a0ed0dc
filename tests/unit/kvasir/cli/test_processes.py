import os
import subprocess
import sys

from kvasir.cli.processes import Process, command_of, memory_of, read_processes, tree_of


def write_stat(proc, process_id, parent_id, name="python", ticks=(0, 0, 0, 0)):
    folder = proc / str(process_id)
    folder.mkdir(parents=True)
    fields = ["S", str(parent_id), *["0"] * 9, *map(str, ticks), "20"]
    (folder / "stat").write_text(f"{process_id} ({name}) {' '.join(fields)}\n")


def process(process_id, parent_id):
    return Process(process_id=process_id, parent_id=parent_id, cpu_s=0.0, children_cpu_s=0.0)


def test_times_are_read_behind_any_name(tmp_path):
    ticks = os.sysconf("SC_CLK_TCK")
    write_stat(tmp_path, 7, 1, "a) b (c", (ticks, 2 * ticks, 3 * ticks, 4 * ticks))
    assert read_processes(tmp_path) == {7: Process(process_id=7, parent_id=1, cpu_s=3.0, children_cpu_s=7.0)}


def test_tree_holds_children_of_children_and_nobody_else():
    processes = {
        one.process_id: one for one in (process(1, 0), process(5, 1), process(6, 5), process(7, 6), process(8, 1))
    }
    assert [one.process_id for one in tree_of(5, processes)] == [5, 6, 7]
    assert tree_of(9, processes) == []


def test_a_process_that_is_gone_has_no_memory_and_no_command(tmp_path):
    assert (memory_of(7, tmp_path), command_of(7, tmp_path)) == (None, "")


def test_a_child_is_found_below_this_process_with_what_it_takes():
    with subprocess.Popen([sys.executable, "-c", "input()", "kvasir test"], stdin=subprocess.PIPE) as child:
        assert child.pid in [one.process_id for one in tree_of(os.getpid(), read_processes())]
        assert command_of(child.pid).endswith("kvasir test")
        memory = memory_of(child.pid)
        assert memory is not None and 0 < memory.pss_bytes <= memory.rss_bytes
        assert child.stdin is not None
        child.stdin.close()
