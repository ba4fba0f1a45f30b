import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interleaf.core.block_pool import BlockPool


def test_allocates_every_block_once():
    pool = BlockPool(5)
    assert sorted(pool.allocate() for _ in range(5)) == [0, 1, 2, 3, 4]
    assert pool.num_free == 0
    with pytest.raises(AssertionError):
        pool.allocate()


def test_evicts_the_least_recently_used_contents():
    pool = BlockPool(3)
    for content in (b"a", b"b", b"c"):
        pool.register(pool.allocate(), content)
    for content in (b"b", b"a", b"c"):
        pool.release(pool.lookup(content))
    touched = pool.lookup(b"b")
    pool.share(touched)
    pool.release(touched)
    evicted = []
    for _ in range(3):
        pool.allocate()
        evicted.append([content for content in (b"a", b"b", b"c") if pool.lookup(content) is None])
    assert evicted == [[b"a"], [b"a", b"c"], [b"a", b"b", b"c"]]


def test_blocks_without_contents_go_first():
    pool = BlockPool(3)
    cached, plain = pool.allocate(), pool.allocate()
    pool.register(cached, b"a")
    pool.release(cached)
    pool.release(plain)
    assert pool.allocate() == plain
    assert pool.lookup(b"a") == cached


def test_shared_block_is_free_with_its_last_reference():
    pool = BlockPool(1)
    block_id = pool.allocate()
    pool.share(block_id)
    pool.release(block_id)
    assert pool.num_free == 0
    pool.release(block_id)
    assert pool.num_free == 1
    with pytest.raises(AssertionError):
        pool.release(block_id)


def test_only_one_block_owns_contents():
    pool = BlockPool(2)
    first, second = pool.allocate(), pool.allocate()
    pool.register(first, b"a")
    pool.register(second, b"a")
    assert pool.lookup(b"a") == first
    pool.release(second)
    assert pool.allocate() == second
    assert pool.lookup(b"a") == first
    pool.check_invariants({first: 1, second: 1})


def test_forgets_all_contents():
    pool = BlockPool(2)
    block_id = pool.allocate()
    pool.register(block_id, b"a")
    pool.release(block_id)
    pool.forget_contents()
    assert pool.lookup(b"a") is None
    pool.check_invariants({})


def test_invariants_notice_a_wrong_count():
    pool = BlockPool(2)
    block_id = pool.allocate()
    pool.check_invariants({block_id: 1})
    with pytest.raises(AssertionError):
        pool.check_invariants({})
    pool.ref_counts[block_id] = 0
    with pytest.raises(AssertionError):
        pool.check_invariants({})


@given(st.lists(st.tuples(st.sampled_from(["allocate", "share", "release", "register"]), st.integers(0, 9))))
def test_agrees_with_a_naive_model(operations):
    pool, references, contents = BlockPool(6), Counter(), {}
    for operation, number in operations:
        if operation == "allocate" and pool.num_free:
            block_id = pool.allocate()
            assert references[block_id] == 0
            contents = {content: owner for content, owner in contents.items() if owner != block_id}
            references[block_id] = 1
        elif operation == "share" and pool.lookup(b"%d" % number) is not None:
            block_id = pool.lookup(b"%d" % number)
            pool.share(block_id)
            references[block_id] += 1
        elif operation == "release" and references[number]:
            pool.release(number)
            references[number] -= 1
        elif operation == "register" and references[number % 6]:
            pool.register(number % 6, b"%d" % number)
            if number % 6 not in contents.values():
                contents.setdefault(b"%d" % number, number % 6)
        assert {content: pool.lookup(content) for content in contents} == contents
        pool.check_invariants(references)


def test_eviction_does_not_scan():
    """The work of a million blocks' pool is that of a small one's, up to memory latency."""

    def seconds(num_blocks: int) -> float:
        pool = BlockPool(num_blocks)
        for content in range(num_blocks):
            pool.register(pool.allocate(), b"%d" % content)
        for block_id in range(num_blocks):
            pool.release(block_id)
        rounds = []
        for _ in range(5):
            start = time.perf_counter()
            for turn in range(500):
                block_id = pool.allocate()
                pool.register(block_id, b"new %d" % turn)
                pool.release(block_id)
            rounds.append(time.perf_counter() - start)
        return min(rounds)

    assert seconds(200_000) < 20 * seconds(200)
