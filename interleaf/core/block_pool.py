"""The fixed pool of KV blocks: reference counts, the map of cached contents, and the free list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class BlockPool:
    """Blocks 0..num_blocks-1. Every operation on one block takes constant time.

    A block with references is held by that many block tables. One without is in the free list,
    where it may still own an entry of the prefix cache: it is *cached but free*, and keeps its
    contents until the list's head reaches it.

    The free list is a ring of links through `_next` and `_previous`, whose start is the index
    `num_blocks`. It is in LRU order, the head being the next to be handed out. Blocks without
    cached contents go to the head: nothing is evicted while a worthless block is free, and a
    lightly used pool keeps writing the same few pages of memory.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.num_free = num_blocks
        self.ref_counts: list[int] = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._block_of_hash: dict[bytes, int] = {}
        self._next: list[int] = [*range(1, num_blocks + 1), 0]
        self._previous: list[int] = [num_blocks, *range(num_blocks)]

    def allocate(self) -> int:
        """Take the least recently used free block, with one reference, evicting what it cached."""
        assert self.num_free, "the caller asks for no more blocks than are free"
        block_id = self._next[self.num_blocks]
        self._unlink(block_id)
        evicted = self._hashes[block_id]
        if evicted is not None:
            del self._block_of_hash[evicted]
            self._hashes[block_id] = None
        self.ref_counts[block_id] = 1
        return block_id

    def share(self, block_id: int) -> None:
        """Add a reference, taking the block out of the free list if it was cached but free."""
        if self.ref_counts[block_id] == 0:
            self._unlink(block_id)
        self.ref_counts[block_id] += 1

    def release(self, block_id: int) -> None:
        """Drop a reference; with the last one the block becomes free."""
        assert self.ref_counts[block_id] > 0, "a block is released once for each reference"
        self.ref_counts[block_id] -= 1
        if self.ref_counts[block_id] == 0:
            start = self.num_blocks
            self._link_before(self._next[start] if self._hashes[block_id] is None else start, block_id)

    def lookup(self, content_hash: bytes) -> int | None:
        """The block that is registered with these contents, held or free."""
        return self._block_of_hash.get(content_hash)

    def register(self, block_id: int, content_hash: bytes) -> None:
        """Let a full, computed block be found by its contents.

        Where another block already is, that one stays: block tables are append-only, so the two
        can't be merged, and one owner is enough.
        """
        if self._hashes[block_id] is None and content_hash not in self._block_of_hash:
            self._hashes[block_id] = content_hash
            self._block_of_hash[content_hash] = block_id

    def forget_contents(self) -> None:
        """Empty the prefix cache. The order of the free list stays."""
        self._block_of_hash.clear()
        self._hashes = [None] * self.num_blocks

    def block_map(self) -> bytes:
        """One byte a block: 0 free, 1 free with cached contents, 2 held once, 3 shared."""
        return bytes(
            min(count, 2) + 1 if count else int(content is not None)
            for count, content in zip(self.ref_counts, self._hashes, strict=True)
        )

    def free_list(self) -> Iterable[int]:
        """Free blocks, the next to be handed out first."""
        block_id = self._next[self.num_blocks]
        while block_id != self.num_blocks:
            yield block_id
            block_id = self._next[block_id]

    def check_invariants(self, references: Mapping[int, int]) -> None:
        """Assert that the pool is sound and that `references` (block id -> count) are those it knows."""
        free = list(self.free_list())
        assert len(free) == len(set(free)) == self.num_free
        assert all(self._previous[self._next[block_id]] == block_id for block_id in free)
        for block_id, count in enumerate(self.ref_counts):
            assert count == references.get(block_id, 0), f"block {block_id} has {count} references"
        assert set(free) == {block_id for block_id, count in enumerate(self.ref_counts) if count == 0}
        owners = {content: block_id for block_id, content in enumerate(self._hashes) if content is not None}
        assert owners == self._block_of_hash

    def _unlink(self, block_id: int) -> None:
        before, after = self._previous[block_id], self._next[block_id]
        self._next[before] = after
        self._previous[after] = before
        self.num_free -= 1

    def _link_before(self, after: int, block_id: int) -> None:
        before = self._previous[after]
        self._next[before] = self._previous[after] = block_id
        self._previous[block_id], self._next[block_id] = before, after
        self.num_free += 1
