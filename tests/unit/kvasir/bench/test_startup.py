"""The bench against a program that prints what `kvasir serve` prints."""

import sys

import pytest

from kvasir.bench.startup import StartupBench, read_phases
from kvasir_protocol.errors import ServiceUnavailable

OUTPUT = """serving m from /m (1 mixed; cpu, 1 thread each)
  ray                       2.9 s
  mixed-0                   3.1 s
  router                    0.2 s
ready in 6.3 s
"""

SERVER = f"""
import signal, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_response(STATUS); self.end_headers(); self.wfile.write(b"{{}}")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(CODE))
server = HTTPServer(("127.0.0.1", 0), Handler)
print({OUTPUT!r} + f"\\nlistening on http://127.0.0.1:{{server.server_port}} (more)", flush=True)
server.serve_forever()
"""


def bench(program, timeout_s=30.0):
    return StartupBench([sys.executable, "-c", program], timeout_s)


def server(status=200, code=0):
    return SERVER.replace("STATUS", str(status)).replace("CODE", str(code))


def test_phases_are_read_in_the_order_they_were_told():
    assert list(read_phases(OUTPUT).items()) == [("ray", 2.9), ("mixed-0", 3.1), ("router", 0.2)]


def test_a_start_is_measured_to_its_first_token_and_stopped():
    start = bench(server()).measure()
    assert start.ready_s == 6.3
    assert start.first_token_s > 0
    assert list(start.columns()) == ["ray", "mixed-0", "router", "ready", "first token", "stop"]


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("import sys; sys.exit('no such model')", "ended with exit code 1: no such model"),
        (server(status=500), "answered 500"),
        (server(code=3), "stopped with exit code 3"),
    ],
)
def test_a_server_that_does_not_serve_is_an_error(program, told):
    with pytest.raises(ServiceUnavailable, match=told):
        bench(program).measure()


def test_a_server_that_is_never_ready_is_given_up_and_ended():
    with pytest.raises(ServiceUnavailable, match=r"not ready in 0\.2 s"):
        bench("import signal; signal.pause()", timeout_s=0.2).measure()
