"""The KV manager of models that have layers with a window: a block table for each group of layers, over one pool.

All of a sequence's tables have the same length: entry i is for the same tokens in each. In a group with a window,
entries that no later query sees become the null block, and their blocks go back to the pool. `block_ids` is the first
group's table, `more_tables` are the others'. See `interleaf.cache_layout`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import chain
from typing import Any

from interleaf.config import CacheConfig
from interleaf.core.kv_manager import KVManager
from interleaf.core.request import Request


class GroupedKVManager(KVManager):
    """What `KVManager` does, for each group of layers.

    The null block is one behind the pool's: it is never written, and never in a free list. A cached prefix is a list
    with an entry for each block of tokens: the block of each group.
    """

    def __init__(self, config: CacheConfig) -> None:
        super().__init__(config)
        self._layout = config.layout
        self._windows = config.layout.windows
        self.blocks_per_entry = len(self._windows)
        self._tags = [bytes([index]) if index else b"" for index in range(len(self._windows))]

    def cached_prefix(self, request: Request) -> list[Any]:
        """The longest prefix of which every group has what the next query sees of it."""
        if not self.enable_prefix_caching:
            return []
        limit = request.max_cached_tokens // self.block_size
        self._extend_hashes(request, limit)
        hashes = request.block_hashes
        found = [[self._null] * limit for _ in self._windows]
        while True:
            before = limit
            for group in range(len(self._windows)):
                limit = self._cached_up_to(hashes, limit, group, found[group])
            if limit == before:
                break
        first = [self._first_seen(limit * self.block_size, window) for window in self._windows]
        return [
            tuple(self._null if entry < first[group] else table[entry] for group, table in enumerate(found))
            for entry in range(limit)
        ]

    def _cached_up_to(self, hashes: list[bytes], limit: int, group: int, table: list[int]) -> int:
        """The longest prefix, of at most `limit` blocks, that serves this group; notes its blocks in `table`."""
        window, tag = self._windows[group], self._tags[group]
        if not window:
            for entry in range(limit):
                block_id = self.pool.lookup(hashes[entry] + tag)
                if block_id is None:
                    return entry
                table[entry] = block_id
            return limit
        entry = limit - 1
        while entry >= self._first_seen(limit * self.block_size, window):
            block_id = self.pool.lookup(hashes[entry] + tag)
            if block_id is None:
                limit = entry
            else:
                table[entry] = block_id
            entry -= 1
        return limit

    def can_admit(self, request: Request, cached: list[Any], reserved: int) -> bool:
        shared = [block_id for block_id in chain.from_iterable(cached) if block_id != self._null]
        needed = self._layout.peak_pages(request.num_tokens, self.block_size) - len(shared)
        revived = sum(self.pool.ref_counts[block_id] == 0 for block_id in shared)
        return bool(needed <= self.pool.num_free - revived - reserved)

    def admit(self, request: Request, cached: list[Any], num_tokens: int) -> None:
        assert not request.block_ids, "waiting sequences hold no blocks"
        for block_id in chain.from_iterable(cached):
            if block_id != self._null:
                self.pool.share(block_id)
        tables = [[entry[group] for entry in cached] for group in range(len(self._windows))]
        request.block_ids, request.more_tables = tables[0], tables[1:]
        request.num_computed_tokens = len(cached) * self.block_size
        request.num_committed_blocks = len(cached)
        request.num_dropped = [self._first_seen(request.num_computed_tokens, window) for window in self._windows]
        self._append_blocks(request, num_tokens)

    def num_blocks_needed(self, request: Request, num_tokens: int) -> int:
        """As `KVManager` has it: never 0 if a table changes, whatever `allocate` gives back before it takes."""
        entries = super().num_blocks_needed(request, num_tokens)
        if not entries:
            return 0
        given_back = sum(
            self.pool.ref_counts[block_id] == 1
            for table, dropped, seen in self._droppable(request)
            for block_id in table[dropped:seen]
        )
        return max(1, entries * self.blocks_per_entry - given_back)

    def num_blocks_missing(self, request: Request, num_tokens: int) -> int:
        peak = self._layout.peak_pages
        return peak(request.num_tokens, self.block_size) - peak(num_tokens, self.block_size)

    def check_invariants(self, requests: Iterable[Request]) -> None:
        references: Counter[int] = Counter()
        for request in requests:
            assert len(request.block_ids) >= self._attention.num_blocks_needed(request.num_computed_tokens)
            tables = self._tables(request)
            for table, dropped, window in zip(tables, request.num_dropped, self._windows, strict=True):
                assert len(table) == len(request.block_ids)
                assert table[:dropped] == [self._null] * dropped and self._null not in table[dropped:]
                assert dropped <= self._first_seen(request.num_computed_tokens, window)
            held = [block_id for table in tables for block_id in table if block_id != self._null]
            assert len(set(held)) == len(held)
            references.update(held)
        self.pool.check_invariants(references)

    def _tables(self, request: Request) -> list[list[int]]:
        return [request.block_ids, *request.more_tables]

    def _first_seen(self, num_computed: int, window: int) -> int:
        """The first entry of a table of which the next query sees something."""
        return max(num_computed - window + 1, 0) // self.block_size if window else 0

    def _droppable(self, request: Request) -> Iterable[tuple[list[int], int, int]]:
        """Of each group with a window: its table, and from where up to where entries may become null."""
        for table, dropped, window in zip(self._tables(request), request.num_dropped, self._windows, strict=True):
            if window:
                yield table, dropped, self._first_seen(request.num_computed_tokens, window)

    def _drop(self, request: Request) -> int:
        first = len(request.block_ids)
        for table, dropped, seen in self._droppable(request):
            for entry in range(dropped, seen):
                self.pool.release(table[entry])
                table[entry] = self._null
            if dropped < seen:
                first = min(first, dropped)
        request.num_dropped = [self._first_seen(request.num_computed_tokens, window) for window in self._windows]
        return first
