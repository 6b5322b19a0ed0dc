import asyncio

import pytest

from kvasir.bench.http_client import HttpClient, Origin
from kvasir_protocol.errors import ConfigError


@pytest.mark.anyio
async def test_connections_are_used_again_and_replaced_when_the_server_closed_them():
    peers = []

    async def handle(reader, writer):
        peers.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        if len(peers) < 3:
            # Takes the next request, and leaves it without an answer.
            await reader.readuntil(b"\r\n\r\n")
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        client = HttpClient(Origin(host="127.0.0.1", port=server.sockets[0].getsockname()[1]), {})
        answers = [await client.post("/", b"", lambda status, piece: None) for _ in range(3)]
        client.close()
        for peer in peers:
            peer.close()
    assert answers == [(200, False), (200, True), (200, True)]
    assert len(peers) == 3


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h:81", Origin(host="h", port=81)),
        ("http://h:81/v1/", Origin(host="h", port=81)),
        ("https://h/api", Origin(host="h", port=443, is_tls=True, path_prefix="/api")),
        ("http://[::1]:8", Origin(host="::1", port=8)),
    ],
)
def test_an_address_is_taken_apart(url, expected):
    assert Origin.from_url(url) == expected


@pytest.mark.parametrize("url", ["h:80", "ftp://h", "http://", "http://h:port"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ConfigError, match="--base-url"):
        Origin.from_url(url)
