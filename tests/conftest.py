"""Set before anything imports torch, and inherited by the processes that tests start."""

import os

# The tests' models are tiny: on a busy machine a second thread only waits at barriers (measured: 63 s against 11 s).
os.environ.setdefault("OMP_NUM_THREADS", "1")
