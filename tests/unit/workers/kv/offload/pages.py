"""Pages for tiers, as the prefix tree gives them away."""

from kvasir_protocol.ids import PageHash, PageIndex
from kvasir_protocol.kv_events import Medium
from kvasir_protocol.page_hash import child_hash, root_hash
from kvasir_workers.kv.prefix_tree import CachedPage, token_bytes

PAGE_SIZE = 2
ROOT = root_hash(PAGE_SIZE)


def evicted(number: int, *, priority: int = 0, is_full: bool = True, page: int | None = None) -> CachedPage:
    """The first page of the tokens number, number; page: where it lay on the device."""
    token_ids = [number] * PAGE_SIZE
    return CachedPage(
        page=PageIndex(number if page is None else page),
        name=child_hash(ROOT, token_ids),
        parent=ROOT,
        content=token_bytes(token_ids),
        is_full=is_full,
        salt="",
        priority=priority,
    )


def name_of(number: int) -> PageHash:
    return evicted(number).name


class Recorder:
    """A PageWatcher that writes down what it hears: + or -, the page's token, and where."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def page_stored(self, page: CachedPage, medium: Medium) -> None:
        self.heard.append(f"+{page.token_ids[0]} {medium}")

    def page_removed(self, page: CachedPage, medium: Medium) -> None:
        self.heard.append(f"-{page.token_ids[0]} {medium}")

    def all_removed(self) -> None:
        self.heard.append("none")
