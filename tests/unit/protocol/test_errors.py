"""The drawn tree of errors is the real one."""

import inspect

from kvasir_protocol import errors


def test_drawn_tree_is_the_tree_of_classes() -> None:
    drawn: dict[str, str] = {}
    ancestors: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        words = line.replace("│", " ").replace("├── ", " " * 4).replace("└── ", " " * 4)
        name = words.split()[0] if words.strip() else ""
        if not name or (name != "KvasirError" and "── " not in line):
            continue
        depth = (len(words) - len(words.lstrip())) // 4
        ancestors = [*ancestors[:depth], name]
        drawn[name] = ancestors[depth - 1] if depth else "Exception"
    classes = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == errors.__name__]
    assert drawn == {cls.__name__: cls.__bases__[0].__name__ for cls in classes}


def test_every_error_says_what_it_is() -> None:
    classes = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == errors.__name__]
    assert all(cls.__doc__ for cls in classes)


def test_invalid_request_names_the_field() -> None:
    assert errors.ContextTooLong("too long", "prompt").field == "prompt"


def test_lost_stream_tells_when_to_ask_again() -> None:
    assert errors.StreamLost("gone", retry_after_s=3.0).retry_after_s == 3.0
