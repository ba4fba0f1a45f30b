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
from interleaf.messages import BlockTableUpdate


class GroupedKVManager(KVManager):
    """What `KVManager` does, for each group of layers.

    The null block is one behind the pool's: it is never written, and never in a free list. A cached prefix is a list
    with an entry for each block of tokens: the block of each group.
    """

    def __init__(self, config: CacheConfig) -> None:
        super().__init__(config)
        self._layout = config.layout
        self._windows = config.layout.windows
        self._null = config.num_blocks
        self.blocks_per_entry = len(self._windows)
        self._tags = [bytes([index]) if index else b"" for index in range(len(self._windows))]
        """Behind a block's hash: which group's keys it holds."""

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

    def num_blocks_needed_together(self, requests: Iterable[Request]) -> int:
        return super().num_blocks_needed_together(requests) * self.blocks_per_entry

    def num_blocks_missing(self, request: Request, num_tokens: int) -> int:
        peak = self._layout.peak_pages
        return peak(request.num_tokens, self.block_size) - peak(num_tokens, self.block_size)

    def allocate(self, request: Request, num_tokens: int, copies: list[tuple[int, int]]) -> int:
        written = request.num_computed_tokens // self.block_size
        start = min(len(request.block_ids), self._drop(request))
        if written < len(request.block_ids) and self.pool.ref_counts[request.block_ids[written]] > 1:
            start = min(start, written)
            for table in self._tables(request):
                shared = table[written]
                table[written] = self.pool.allocate()
                self.pool.release(shared)
                copies.append((shared, table[written]))
        self._append_blocks(request, num_tokens)
        return start

    def table_updates(self, request: Request, start: int) -> list[BlockTableUpdate]:
        return [
            BlockTableUpdate(request.sequence_id, start, table[start:], group)
            for group, table in enumerate(self._tables(request))
        ]

    def _num_free_entries(self) -> int:
        return self.pool.num_free // self.blocks_per_entry

    def trim(self, request: Request) -> None:
        needed = self._attention.num_blocks_needed(request.num_tokens)
        for table in self._tables(request):
            while len(table) > needed:
                self.pool.release(table.pop())

    def fork(self, parent: Request, child: Request) -> None:
        for table in self._tables(parent):
            for block_id in table:
                if block_id != self._null:
                    self.pool.share(block_id)
        child.block_ids = parent.block_ids.copy()
        child.more_tables = [table.copy() for table in parent.more_tables]
        child.num_dropped = parent.num_dropped.copy()
        child.block_hashes = parent.block_hashes.copy()
        child.num_committed_blocks = parent.num_committed_blocks

    def commit(self, request: Request) -> None:
        if not self.enable_prefix_caching:
            return
        full = self._attention.committable(request)
        if full:
            self._extend_hashes(request, full.stop)
            for tag, table in zip(self._tags, self._tables(request), strict=True):
                for entry in full:
                    self.pool.register(table[entry], request.block_hashes[entry] + tag)
            request.num_committed_blocks = full.stop

    def free(self, request: Request) -> None:
        for entry in range(len(request.block_ids) - 1, -1, -1):
            for table in self._tables(request):
                if table[entry] != self._null:
                    self.pool.release(table[entry])
        request.block_ids, request.more_tables, request.num_dropped = [], [], []
        request.num_computed_tokens = 0
        request.num_committed_blocks = 0

    def num_used_token_slots(self, requests: Iterable[Request]) -> int:
        unfilled: dict[int, int] = {}
        for request in requests:
            for table in self._tables(request):
                for entry in range(request.num_computed_tokens // self.block_size, len(table)):
                    empty = min((entry + 1) * self.block_size - request.num_computed_tokens, self.block_size)
                    unfilled[table[entry]] = min(empty, unfilled.get(table[entry], empty))
        num_held = self.pool.num_blocks - self.pool.num_free
        return num_held * self.block_size - sum(unfilled.values())

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
        """Give back the blocks that no later query sees; returns the first entry that became null."""
        first = len(request.block_ids)
        for table, dropped, seen in self._droppable(request):
            for entry in range(dropped, seen):
                self.pool.release(table[entry])
                table[entry] = self._null
            if dropped < seen:
                first = min(first, dropped)
        request.num_dropped = [self._first_seen(request.num_computed_tokens, window) for window in self._windows]
        return first

    def _append_blocks(self, request: Request, num_tokens: int) -> None:
        length = self._attention.num_blocks_needed(request.num_computed_tokens + num_tokens)
        for table in self._tables(request):
            for _ in range(length - len(table)):
                table.append(self.pool.allocate())
