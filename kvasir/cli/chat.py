"""`kvasir chat`: a talk with a running server, in the terminal or from a pipe (one question a line)."""

import sys
from collections.abc import Generator

from kvasir.cli.server_api import Message, ServerApi

PROMPT = "you> "


class Chat:
    """The talk so far, and the server that goes on with it. model: one of those that it serves; None is the first."""

    def __init__(
        self, url: str, api_key: str | None, system: str | None, max_tokens: int | None, model: str | None = None
    ) -> None:
        self._server = ServerApi(url, api_key)
        self._max_tokens = max_tokens
        self._opening: list[Message] = [{"role": "system", "content": system}] if system else []
        self._messages = list(self._opening)
        self.model = model or self._server.first_model()

    def clear(self) -> None:
        """Forget all but the system message."""
        self._messages = list(self._opening)

    def answer(self, question: str) -> Generator[str]:
        """Pieces of the answer. What has come is remembered, also when the reader stops early."""
        self._messages.append({"role": "user", "content": question})
        pieces: list[str] = []
        stream = self._server.stream_chat(self.model, self._messages, self._max_tokens)
        try:
            for piece in stream:
                pieces.append(piece)
                yield piece
        finally:
            stream.close()
            self._messages.append({"role": "assistant", "content": "".join(pieces)})


def talk(chat: Chat) -> int:
    """Until /exit or the end of the input."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        _prepare_terminal(chat)
    while (line := _read_line(is_terminal=is_terminal)) is not None:
        match line.strip():
            case "":
                continue
            case "/exit" | "/quit":
                break
            case "/clear":
                chat.clear()
            case question:
                _print_answer(chat.answer(question))
    return 0


def _prepare_terminal(chat: Chat) -> None:
    import readline

    readline.set_auto_history(True)
    print(f"talking with {chat.model}; /clear forgets, Ctrl-C stops an answer, /exit or Ctrl-D leaves")


def _read_line(*, is_terminal: bool) -> str | None:
    """The next question; None when there is no more."""
    while True:
        try:
            line = input(PROMPT if is_terminal else "")
            # Bytes that are no UTF-8 come as lone surrogates, which JSON can't carry.
            return line.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        except EOFError:
            if is_terminal:
                print()
            return None
        except KeyboardInterrupt:
            if not is_terminal:
                return None
            print()


def _print_answer(pieces: Generator[str]) -> None:
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pieces.close()
        print(" [stopped]", end="")
    print(flush=True)
