"""Which sequences are noted as sharing chunks: compared with a search that goes through the tables."""

from __future__ import annotations

import numpy as np
import pytest

from interleaf.ops import MOST_SHARED, SHARED_CHUNK
from interleaf.worker.model_input import new_inputs
from interleaf.worker.shared_prefixes import MOST_TOKENS, SharedPrefixes


def noted(tables: list[list[int]], starts: list[int], counts: list[int], block_size: int) -> list[tuple[int, int]]:
    """(chunks, first sequence of the run) of each."""
    length = max(map(len, tables))
    rows = np.arange(len(tables))[::-1].copy()
    stored = np.zeros((len(tables), length), np.int32)
    for row, table in zip(rows, tables, strict=True):
        stored[row, : len(table)] = table
    inputs = new_inputs(4096, len(tables), stored)
    # What an earlier step has left is forgotten.
    inputs.shared_chunks[:], inputs.shared_with[:] = 3, 0
    SharedPrefixes(inputs, block_size).note(rows, np.array(starts, np.int32), np.array(counts, np.int32), True)
    return list(zip(inputs.shared_chunks.tolist(), inputs.shared_with.tolist(), strict=True))


@pytest.mark.parametrize("block_size", [16, 48, 512])
def test_random_tables(block_size: int) -> None:
    rng = np.random.default_rng(block_size)
    num_shared = 0
    for _ in range(200):
        num_sequences = int(rng.integers(1, 9))
        starts = rng.integers(0, 1300, num_sequences).tolist()
        counts = rng.choice([1, 1, 1, 3, MOST_TOKENS, MOST_TOKENS + 1], num_sequences).tolist()
        tables: list[list[int]] = []
        for start, count in zip(starts, counts, strict=True):
            length = -(-(start + count) // block_size)
            common = int(rng.integers(0, length + 1)) if tables and rng.random() < 0.8 else 0
            begin = tables[-1][:common] if tables else []
            tables.append(begin + (1000 * len(tables) + np.arange(length - len(begin))).tolist())
        found = noted(tables, starts, counts, block_size)
        for i, (chunks, leader) in enumerate(found):
            if not chunks:
                assert leader == i
                continue
            num_shared += 1
            run = [j for j, one in enumerate(found) if one == (chunks, leader)]
            assert len(run) > 1 and run == list(range(leader, leader + len(run)))
            # Everybody's queries are behind the keys that are shared, and the blocks are the same.
            assert chunks * SHARED_CHUNK <= starts[i] and counts[i] <= MOST_TOKENS
            length = -(-chunks * SHARED_CHUNK // block_size)
            assert tables[i][:length] == tables[leader][:length]
    assert num_shared > 50


def test_beams_with_a_common_system_prompt_keep_what_they_share_with_each_other() -> None:
    system = list(range(16))
    first, second = system + list(range(100, 150)), system + list(range(200, 250))
    tables = [[*first, 1], [*first, 2], [*first, 3], [*second, 4], [*second, 5], [*system, 6]]
    starts = [66 * 16] * 5 + [16 * 16]
    assert noted(tables, starts, [1] * 6, 16) == [(4, 0)] * 3 + [(4, 3)] * 2 + [(0, 5)]
    # A sequence that would spoil more than it brings stays outside; without it, all share the system prompt.
    assert noted(tables[2:4], starts[2:4], [1, 1], 16) == [(1, 0)] * 2


def test_no_more_than_there_is_memory_for() -> None:
    chunks, count = 8, 150
    tables = [[*range(chunks * 16), 1000 + i] for i in range(count)]
    found = noted(tables, [chunks * SHARED_CHUNK] * count, [1] * count, 16)
    assert found == [(MOST_SHARED // count, 0)] * count


def test_what_was_found_is_found_again_when_a_chunk_is_full() -> None:
    table = np.tile(np.arange(64, dtype=np.int32), (2, 1))
    inputs = new_inputs(64, 2, table)
    prefixes = SharedPrefixes(inputs, 16)
    rows, counts = np.arange(2), np.ones(2, np.int32)
    for start, chunks in ((255, 0), (256, 1), (300, 1), (511, 1), (512, 2)):
        prefixes.note(rows, np.full(2, start, np.int32), counts, False)
        assert inputs.shared_chunks.tolist() == [chunks, chunks] and inputs.shared_with[1] == (0 if chunks else 1)
    table[1] += 100
    prefixes.note(rows, np.full(2, 513, np.int32), counts, True)
    assert inputs.shared_chunks.tolist() == [0, 0]
