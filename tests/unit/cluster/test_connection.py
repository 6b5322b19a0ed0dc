import socket

import pytest

from kvasir_cluster.connection import connect
from kvasir_protocol.errors import ServiceUnavailable


def test_a_head_that_nobody_listens_at_is_told_at_once():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(ServiceUnavailable, match=f"no Ray head at 127.0.0.1:{port}"), connect(f"127.0.0.1:{port}", "x"):
        pass


def test_an_address_that_is_none_is_told_at_once():
    with pytest.raises(ServiceUnavailable, match="no Ray head at nowhere:none"), connect("nowhere:none", "x"):
        pass
