import subprocess
import sys

import psutil

ORPHAN_MAKER = """
import subprocess, sys
from kvasir.cli.descendants import adopt_orphans, kill_descendants
adopt_orphans()
child = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'input()'], stdin=-1, stdout=2).pid)"
print(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True).stdout)
kill_descendants()
"""


def test_a_grandchild_whose_parent_has_ended_is_ended_too():
    run = subprocess.run([sys.executable, "-c", ORPHAN_MAKER], capture_output=True, text=True, check=True, timeout=60)
    assert not psutil.pid_exists(int(run.stdout))
