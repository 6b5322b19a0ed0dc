import socket

import pytest

from kvasir_cluster.listening import CONTROL_PORTS, find_control_port, listen, url_of
from kvasir_protocol.errors import ConfigError


def test_a_port_in_use_is_refused_with_the_way_out():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match=f"can't listen on 127.0.0.1 port {port}: .* choose another with"):
            listen("127.0.0.1", port)


def test_a_foreign_address_is_refused():
    with pytest.raises(ConfigError, match=r"can't listen on 203\.0\.113\.1"):
        listen("203.0.113.1", 0)


def test_clients_can_connect_as_soon_as_the_socket_listens():
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname(), timeout=5):
        pass


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_url_leads_a_client_on_this_host_to_the_socket(host):
    with listen(host, 0) as listener:
        assert url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_control_port_is_below_those_of_outgoing_connections():
    assert find_control_port("127.0.0.1") in CONTROL_PORTS
