import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from kvasir.cli.chat import Chat, talk
from kvasir.cli.main import main
from kvasir_protocol.errors import InvalidRequest, ServiceUnavailable


class FakeServer(ThreadingHTTPServer):
    """Answers a chat by the pieces in `pieces`; keeps the bodies that it was sent."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.pieces = ["Hel", "lo"]
        self.error = None
        self.key = None
        self.bodies = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def _send(self, status, body, kind="application/json"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.server.key and self.headers["Authorization"] != f"Bearer {self.server.key}":
            self._send(401, b"{}")
        else:
            self._send(200, json.dumps({"data": [{"id": "demo"}]}).encode())

    def do_POST(self):
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if self.server.error:
            self._send(503, json.dumps({"error": {"message": self.server.error}}).encode())
            return
        chunks = [{"choices": [{"delta": {"content": piece}}]} for piece in self.server.pieces]
        lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"]
        self._send(200, "".join(lines).encode(), "text/event-stream")


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("KVASIR_API_KEY", raising=False)
    server = FakeServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def say(monkeypatch, *lines):
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_piped_questions_are_answered_line_by_line(server, monkeypatch, capsys):
    say(monkeypatch, "one", "", "two")
    assert main(["chat", "--url", server.url, "--max-tokens", "5"]) == 0
    assert capsys.readouterr().out == "Hello\nHello\n"
    assert [body["max_completion_tokens"] for body in server.bodies] == [5, 5]
    assert server.bodies[0]["model"] == "demo"


def test_the_talk_so_far_is_sent_with_every_question(server, monkeypatch):
    say(monkeypatch, "one", "two")
    talk(Chat(server.url, None, "be brief", None))
    assert server.bodies[1]["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "two"},
    ]


def test_clear_forgets_all_but_the_system_message(server, monkeypatch):
    say(monkeypatch, "one", "/clear", "two")
    talk(Chat(server.url, None, "be brief", None))
    assert [message["content"] for message in server.bodies[1]["messages"]] == ["be brief", "two"]


def test_exit_ends_the_talk(server, monkeypatch):
    say(monkeypatch, "/exit", "unasked")
    assert talk(Chat(server.url, None, None, None)) == 0
    assert server.bodies == []


def test_an_answer_that_is_stopped_keeps_what_has_come(server):
    chat = Chat(server.url, None, None, None)
    answer = chat.answer("one")
    assert next(answer) == "Hel"
    answer.close()
    assert list(chat.answer("two")) == ["Hel", "lo"]
    assert server.bodies[1]["messages"][1] == {"role": "assistant", "content": "Hel"}


def test_ctrl_c_stops_the_answer_and_the_talk_goes_on(server, monkeypatch, capsys):
    class Impatient(Chat):
        def answer(self, question):
            yield from super().answer(question)
            if question == "one":
                raise KeyboardInterrupt

    say(monkeypatch, "one", "two")
    assert talk(Impatient(server.url, None, None, None)) == 0
    assert capsys.readouterr().out == "Hello [stopped]\nHello\n"


def test_the_servers_own_words_are_told_when_it_refuses(server):
    server.error = "too many streams"
    with pytest.raises(ServiceUnavailable, match="answers 503: too many streams"):
        list(Chat(server.url, None, None, None).answer("one"))


def test_a_missing_key_is_asked_for_and_a_given_one_is_sent(server):
    server.key = "sesame"
    with pytest.raises(InvalidRequest, match="give --api-key KEY or set KVASIR_API_KEY"):
        Chat(server.url, None, None, None)
    assert Chat(server.url, "sesame", None, None).model == "demo"


def test_an_url_with_the_api_path_is_understood(server):
    assert Chat(f"{server.url}/v1/", None, None, None).model == "demo"


def test_a_model_that_was_named_is_talked_with(server):
    list(Chat(server.url, None, None, None, "other").answer("one"))
    assert server.bodies[0]["model"] == "other"
