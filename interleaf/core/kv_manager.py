"""Which sequence holds which KV blocks: sharing, copying on write, and the prefix cache.

The scheduler asks (`can_admit`, `num_blocks_needed`), then tells (`admit`, `allocate`, `fork`,
`commit`, `free`). What differs between kinds of attention is a strategy's answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from interleaf.config import CacheConfig
from interleaf.core.block_hash import block_hash
from interleaf.core.block_pool import BlockPool
from interleaf.core.request import Request
from interleaf.messages import BlockTableUpdate


class FullAttention:
    """Every token attends to all before it, so a sequence needs all of its blocks until it ends.

    A strategy answers questions and changes nothing: what prefix is cached, how many blocks are needed, what may be
    committed to the prefix cache.
    """

    def __init__(self, pool: BlockPool, block_size: int) -> None:
        self._pool = pool
        self._block_size = block_size

    def cached_prefix(self, block_hashes: Iterable[bytes]) -> list[int]:
        """The blocks that hold the longest cached prefix: up to the first miss."""
        block_ids = []
        for content_hash in block_hashes:
            block_id = self._pool.lookup(content_hash)
            if block_id is None:
                break
            block_ids.append(block_id)
        return block_ids

    def num_blocks_needed(self, num_tokens: int) -> int:
        """Length of the block table of a sequence with this many tokens."""
        return -(-num_tokens // self._block_size)

    def committable(self, request: Request) -> range:
        """Entries of the block table that are full, computed, and not yet offered to the cache."""
        return range(request.num_committed_blocks, request.num_computed_tokens // self._block_size)


class KVManager:
    """Keeps the block tables of sequences and the pool's reference counts in step.

    A sequence has one table, `Request.block_ids`. What is said here of several is for `GroupedKVManager`.
    """

    blocks_per_entry = 1
    """Blocks that an entry of a sequence's block table stands for."""

    def __init__(self, config: CacheConfig) -> None:
        self.pool = BlockPool(config.num_blocks)
        self.block_size = config.block_size
        self.enable_prefix_caching = config.enable_prefix_caching
        self._attention = FullAttention(self.pool, config.block_size)
        self._tags = [b""]
        """Behind a block's hash, for each table: which layers' keys it holds."""
        self._null = config.num_blocks
        """Stands in tables for blocks that were given back early."""

    def cached_prefix(self, request: Request) -> list[int]:
        """Blocks of the cached prefix that a waiting sequence may start from."""
        if not self.enable_prefix_caching:
            return []
        num_blocks = request.max_cached_tokens // self.block_size
        self._extend_hashes(request, num_blocks)
        return self._attention.cached_prefix(request.block_hashes[:num_blocks])

    def hashes_filled(self, request: Request, num_tokens: int) -> list[bytes]:
        """What names the blocks that `num_tokens` more tokens of a sequence fill."""
        if not self.enable_prefix_caching:
            return []
        first = request.num_computed_tokens // self.block_size
        stop = (request.num_computed_tokens + num_tokens) // self.block_size
        self._extend_hashes(request, stop)
        return request.block_hashes[first:stop]

    def first_miss(self, request: Request, cached: list[int]) -> bytes | None:
        """What names the first block that a waiting sequence would have to compute though it could be cached."""
        could_be = self.enable_prefix_caching and len(cached) < request.max_cached_tokens // self.block_size
        return request.block_hashes[len(cached)] if could_be else None

    def can_admit(self, request: Request, cached: list[int], reserved: int) -> bool:
        """Whether all tokens of a waiting sequence fit, with `reserved` blocks promised to others.

        Cached blocks that are free can't be handed out once this sequence shares them.
        """
        needed = self._attention.num_blocks_needed(request.num_tokens) - len(cached)
        revived = sum(self.pool.ref_counts[block_id] == 0 for block_id in cached)
        return needed <= self.pool.num_free - revived - reserved

    def admit(self, request: Request, cached: list[int], num_tokens: int) -> None:
        """Start a sequence's table: the cached prefix, then blocks for `num_tokens` more."""
        assert not request.block_ids, "waiting sequences hold no blocks"
        for block_id in cached:
            self.pool.share(block_id)
        request.block_ids = cached
        request.num_computed_tokens = len(cached) * self.block_size
        request.num_committed_blocks = len(cached)
        self._append_blocks(request, num_tokens)

    def num_blocks_needed(self, request: Request, num_tokens: int) -> int:
        """Blocks to take from the pool before `num_tokens` more tokens of a sequence are written."""
        num_computed = request.num_computed_tokens
        table = request.block_ids
        needed = self._attention.num_blocks_needed(num_computed + num_tokens) - len(table)
        written = num_computed // self.block_size
        if written < len(table) and self.pool.ref_counts[table[written]] > 1:
            needed += 1
        return needed

    def num_blocks_needed_together(self, requests: Iterable[Request]) -> int:
        """Blocks to take before these sequences write all their next tokens; the last holder of one needs no copy."""
        needed = 0
        writers: Counter[int] = Counter()
        for request in requests:
            entry = request.num_computed_tokens // self.block_size
            if entry < len(request.block_ids):
                writers[request.block_ids[entry]] += 1
            needed += max(self._attention.num_blocks_needed(request.num_tokens) - len(request.block_ids), 0)
        needed += sum(min(count, self.pool.ref_counts[block] - 1) for block, count in writers.items())
        return needed * self.blocks_per_entry

    def num_blocks_missing(self, request: Request, num_tokens: int) -> int:
        """Blocks that all tokens of a sequence will need beyond its first `num_tokens`."""
        return self._attention.num_blocks_needed(request.num_tokens) - self._attention.num_blocks_needed(num_tokens)

    def allocate(self, request: Request, num_tokens: int, copies: list[tuple[int, int]]) -> int:
        """Make the table ready for `num_tokens` to be written; return its first changed entry.

        A part-filled block that others hold too is replaced, and (from, to) is added to `copies`.
        Its last holder writes in place: the worker copies before it writes.
        """
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
        """News for the worker of tables that were changed from entry `start` on."""
        return [
            BlockTableUpdate(request.sequence_id, start, table[start:], group)
            for group, table in enumerate(self._tables(request))
        ]

    def extend(self, request: Request, num_tokens: int, num_drafts: int) -> tuple[int, int]:
        """Lengthen the table for drafts behind `num_tokens` tokens that it is ready for, with what blocks are free.

        Returns:
            For how many drafts there is room, and the first changed entry of the table.
        """
        # Accepted drafts may fill block after block, so that `allocate` has never anything to do.
        start = min(len(request.block_ids), self._drop(request))
        slots = (len(request.block_ids) + self.pool.num_free // self.blocks_per_entry) * self.block_size
        num_drafts = min(num_drafts, slots - request.num_computed_tokens - num_tokens)
        self._append_blocks(request, num_tokens + num_drafts)
        return num_drafts, start

    def trim(self, request: Request) -> None:
        """Give back the blocks that only rejected drafts needed."""
        needed = self._attention.num_blocks_needed(request.num_tokens)
        for table in self._tables(request):
            while len(table) > needed:
                self.pool.release(table.pop())

    def fork(self, parent: Request, child: Request) -> None:
        """Give `child` the parent's tables, by reference."""
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
        """Register the blocks that have become full, so that they can be hit while still in use."""
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
        """Take a sequence's blocks away. What is registered stays in the prefix cache.

        They are given back tail first, so that prefixes, which others may share, outlive suffixes in the free list.
        """
        tables = self._tables(request)
        for entry in range(len(request.block_ids) - 1, -1, -1):
            for table in tables:
                if table[entry] != self._null:
                    self.pool.release(table[entry])
        request.block_ids, request.more_tables, request.num_dropped = [], [], []
        request.num_computed_tokens = 0
        request.num_committed_blocks = 0

    def reset_prefix_cache(self) -> bool:
        """Forget all cached contents; False, and nothing done, while any block is in use."""
        if self.pool.num_free < self.pool.num_blocks:
            return False
        self.pool.forget_contents()
        return True

    def num_used_token_slots(self, requests: Iterable[Request]) -> int:
        """Token positions filled in the held blocks, each block counted once.

        All held blocks are full but those at the ends of the tables, so only these are visited.
        """
        unfilled: dict[int, int] = {}
        for request in requests:
            for table in self._tables(request):
                for entry in range(request.num_computed_tokens // self.block_size, len(table)):
                    empty = min((entry + 1) * self.block_size - request.num_computed_tokens, self.block_size)
                    unfilled[table[entry]] = min(empty, unfilled.get(table[entry], empty))
        num_held = self.pool.num_blocks - self.pool.num_free
        return num_held * self.block_size - sum(unfilled.values())

    def check_invariants(self, requests: Iterable[Request]) -> None:
        """Assert that `requests` are all that hold blocks, and that the pool agrees."""
        references: Counter[int] = Counter()
        for request in requests:
            references.update(request.block_ids)
            assert len(request.block_ids) >= self._attention.num_blocks_needed(request.num_computed_tokens)
            assert len(set(request.block_ids)) == len(request.block_ids)
        self.pool.check_invariants(references)

    def _tables(self, request: Request) -> list[list[int]]:
        """All of a sequence's tables, which have the same length."""
        return [request.block_ids]

    def _drop(self, request: Request) -> int:
        """Give back the blocks that no later query sees; returns the first entry that became null."""
        return len(request.block_ids)

    def _append_blocks(self, request: Request, num_tokens: int) -> None:
        length = self._attention.num_blocks_needed(request.num_computed_tokens + num_tokens)
        for table in self._tables(request):
            for _ in range(length - len(table)):
                table.append(self.pool.allocate())

    def _extend_hashes(self, request: Request, num_blocks: int) -> None:
        hashes = request.block_hashes
        size = self.block_size
        for entry in range(len(hashes), num_blocks):
            parent = hashes[-1] if hashes else request.group.root_hash
            hashes.append(block_hash(parent, request.tokens_between(entry * size, (entry + 1) * size)))
