"""A reader of page events that takes nothing on trust."""

from collections.abc import Iterable

from kvasir_protocol.kv_events import MEDIUM_GPU, AllBlocksCleared, BlockHash, BlockRemoved, BlockStored, KvEvent


class Reader:
    """What the device has, by name: the tokens of each page, and the page before it."""

    def __init__(self) -> None:
        self.tokens: dict[BlockHash, tuple[int, ...]] = {}
        self.parents: dict[BlockHash, BlockHash | None] = {}

    def apply(self, events: Iterable[KvEvent]) -> None:
        for event in events:
            match event:
                case BlockStored(medium=medium) if medium == MEDIUM_GPU:
                    self._store(event)
                case BlockRemoved(medium=medium) if medium == MEDIUM_GPU:
                    for name in event.block_hashes:
                        assert name not in self.parents.values(), "a page was removed before one after it"
                        del self.tokens[name], self.parents[name]
                case AllBlocksCleared():
                    self.tokens.clear()
                    self.parents.clear()

    def _store(self, event: BlockStored) -> None:
        parent = event.parent_block_hash
        for index, name in enumerate(event.block_hashes):
            assert name not in self.tokens, "a page was stored twice"
            assert parent is None or parent in self.tokens, "a page was stored before the one before it"
            self.tokens[name] = event.token_ids[index * event.block_size : (index + 1) * event.block_size]
            self.parents[name] = parent
            parent = name


class LowerReader:
    """What lies below the device, by name and medium: a page may be there without the page before it."""

    def __init__(self) -> None:
        self.tokens: dict[tuple[BlockHash, str | None], tuple[int, ...]] = {}

    def apply(self, events: Iterable[KvEvent]) -> None:
        for event in events:
            match event:
                case BlockStored(medium=medium) if medium != MEDIUM_GPU:
                    for index, name in enumerate(event.block_hashes):
                        assert (name, medium) not in self.tokens, "a page was stored twice"
                        tokens = event.token_ids[index * event.block_size : (index + 1) * event.block_size]
                        self.tokens[name, medium] = tokens
                case BlockRemoved(medium=medium) if medium != MEDIUM_GPU:
                    for name in event.block_hashes:
                        del self.tokens[name, medium]
                case AllBlocksCleared():
                    self.tokens.clear()
