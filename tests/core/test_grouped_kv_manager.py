"""Tables of several groups of layers over one pool; what random traffic can't show is here."""

from interleaf.cache_layout import CacheLayout
from interleaf.config import CacheConfig
from interleaf.core.grouped_kv_manager import GroupedKVManager
from interleaf.core.request import Request
from tests.core.test_kv_manager import SIZE, sequence

NULL = 60


def manager(windows: tuple[int, ...] = (0, 6), step: int = 8) -> GroupedKVManager:
    return GroupedKVManager(CacheConfig(SIZE, NULL, True, CacheLayout(windows, (), step)))


def compute(kv: GroupedKVManager, request: Request, chunk: int = 8) -> None:
    """Admit a sequence and compute its tokens, `chunk` a step."""
    cached = kv.cached_prefix(request)
    kv.admit(request, cached, min(chunk, request.num_tokens - len(cached) * SIZE))
    while True:
        request.num_computed_tokens = min(request.num_tokens, request.num_computed_tokens + chunk)
        kv.commit(request)
        kv.check_invariants([request])
        left = request.num_tokens - request.num_computed_tokens
        if not left:
            break
        kv.allocate(request, min(chunk, left), [])


def test_what_a_window_leaves_goes_back_to_the_pool():
    kv = manager()
    request = sequence(list(range(40)))
    compute(kv, request)
    # Behind token 32, the last step's first, nothing before token 27 is seen, whose block is entry 6.
    assert request.num_dropped == [0, 6] and request.more_tables[0][:6] == [NULL] * 6
    assert NULL - kv.pool.num_free == 10 + 4
    assert kv.num_used_token_slots([request]) == (10 + 4) * SIZE


def test_news_of_a_table_tell_of_nulls_and_new_blocks():
    kv = manager()
    request = sequence(list(range(20)))
    kv.admit(request, [], 16)
    request.num_computed_tokens = 16
    start = kv.allocate(request, 4, [])
    full, windowed = kv.table_updates(request, start)
    assert (full.group, windowed.group) == (0, 1) and start == 0
    assert full.block_ids == request.block_ids and windowed.block_ids == request.more_tables[0]
    assert windowed.block_ids[:2] == [NULL, NULL] and NULL not in windowed.block_ids[2:]


def test_a_hit_needs_only_the_window_of_groups_that_have_one():
    kv = manager()
    compute(kv, sequence(list(range(40))))
    [*_, last] = cached = kv.cached_prefix(sequence([*range(40), 99]))
    assert len(cached) == 10 and NULL not in last
    # Token 40 sees tokens 35 to 40: entries 8 and 9.
    assert [entry[1] == NULL for entry in cached] == [True] * 8 + [False] * 2


def test_a_hit_ends_where_the_window_is_lost():
    kv = manager(step=40)
    first = sequence(list(range(40)))
    compute(kv, first, chunk=40)
    del kv.pool._block_of_hash[first.block_hashes[8] + b"\x01"]
    assert len(kv.cached_prefix(sequence([*range(40), 99]))) == 8


def test_groups_do_not_hit_each_others_blocks():
    kv = manager(windows=(0, 0))
    request = sequence(list(range(9)))
    compute(kv, request)
    [first, second] = kv.cached_prefix(sequence([*range(8), 99]))
    assert first == (request.block_ids[0], request.more_tables[0][0]) and len({*first, *second}) == 4


def test_a_shared_block_is_copied_in_every_group():
    kv = manager()
    parent, child = sequence(list(range(14))), sequence(list(range(14)), 1)
    compute(kv, parent)
    kv.fork(parent, child)
    child.num_computed_tokens = 14
    copies: list[tuple[int, int]] = []
    assert kv.num_blocks_needed(parent, 1) == 2
    kv.allocate(parent, 1, copies)
    assert [pair[1] for pair in copies] == [parent.block_ids[3], parent.more_tables[0][3]]
    assert kv.num_blocks_needed(child, 1) == 0
    kv.check_invariants([parent, child])
    kv.free(parent)
    kv.free(child)
    assert kv.pool.num_free == NULL


def test_room_is_asked_for_as_much_as_is_ever_held():
    kv = manager(windows=(0, 6), step=4)
    long = sequence(list(range(120)))
    assert kv.num_blocks_missing(long, 60) == 15
    # 30 blocks of the first group, and of the second a window and a step: 3, at both ends in part, and one to change.
    assert kv.can_admit(long, [], NULL - 30 - 5) and not kv.can_admit(long, [], NULL - 30 - 4)


def test_a_window_leaves_its_blocks_also_where_only_drafts_take_new_ones():
    kv = manager(windows=(6,))
    request = sequence(list(range(8)))
    compute(kv, request)
    for _ in range(20):
        # A token and two drafts, which are all accepted.
        request.output_token_ids.append(1)
        if kv.num_blocks_needed(request, 1):
            kv.allocate(request, 1, [])
        assert kv.extend(request, 1, 2)[0] == 2
        request.output_token_ids += [1, 1]
        request.num_computed_tokens += 3
        kv.check_invariants([request])
        assert NULL - kv.pool.num_free <= CacheLayout((6,), (), 8).peak_pages(100, SIZE)
