from interleaf.config import CacheConfig
from interleaf.core.kv_manager import KVManager
from interleaf.core.request import Request, RequestGroup
from interleaf.messages import EngineRequest
from interleaf.params import SamplingParams

SIZE = 4


def manager(num_blocks: int = 8, caching: bool = True) -> KVManager:
    return KVManager(CacheConfig(SIZE, num_blocks, caching))


def sequence(tokens: list[int], index: int = 0, salt: str | None = None) -> Request:
    source = EngineRequest("r", tokens, SamplingParams(seed=0), cache_salt=salt)
    return RequestGroup(source, 0, index).new_sequence(index)


def compute(kv: KVManager, request: Request) -> None:
    """Admit a sequence and compute all of its tokens."""
    cached = kv.cached_prefix(request)
    kv.admit(request, cached, request.num_tokens - len(cached) * SIZE)
    request.num_computed_tokens = request.num_tokens
    kv.commit(request)


def test_prefix_is_hit_while_in_use_but_never_whole():
    kv = manager()
    first = sequence(list(range(8)))
    compute(kv, first)
    same, longer = sequence(list(range(8))), sequence(list(range(9)))
    assert kv.cached_prefix(same) == first.block_ids[:1]
    assert kv.cached_prefix(longer) == first.block_ids
    kv.free(first)
    assert len(kv.cached_prefix(longer)) == 2
    assert kv.cached_prefix(sequence(list(range(9)), salt="x")) == []
    assert kv.cached_prefix(sequence([9, *range(1, 9)])) == []


def test_generated_tokens_are_cached_too():
    kv = manager()
    first = sequence([1, 2, 3])
    compute(kv, first)
    first.output_token_ids += [4, 5]
    kv.allocate(first, 2, [])
    first.num_computed_tokens = 5
    kv.commit(first)
    assert kv.cached_prefix(sequence([1, 2, 3, 4, 9])) == first.block_ids[:1]


def test_without_caching_nothing_is_hashed_or_hit():
    kv = manager(caching=False)
    first = sequence(list(range(8)))
    compute(kv, first)
    assert kv.cached_prefix(sequence(list(range(9)))) == [] and first.block_hashes == []


def test_cached_free_blocks_do_not_count_as_room():
    kv = manager(num_blocks=3)
    first = sequence(list(range(8)))
    compute(kv, first)
    kv.free(first)
    request = sequence([*range(8), 8, 9, 10, 11])
    cached = kv.cached_prefix(request)
    assert len(cached) == 2
    assert kv.can_admit(request, cached, reserved=0)
    assert not kv.can_admit(request, cached, reserved=1)
    assert not kv.can_admit(sequence([*range(8), *range(8)]), cached, reserved=0)


def test_prefixes_outlive_suffixes():
    kv = manager(num_blocks=3)
    first = sequence(list(range(12)))
    compute(kv, first)
    table = first.block_ids
    kv.free(first)
    kv.admit(sequence([50] * 4, index=1), [], 4)
    assert kv.cached_prefix(sequence(list(range(13)))) == table[:2]


def test_first_writers_copy_and_the_last_writes_in_place():
    kv = manager()
    parent = sequence(list(range(6)))
    compute(kv, parent)
    children = [sequence(list(range(6)), index) for index in (1, 2)]
    for child in children:
        kv.fork(parent, child)
        child.num_computed_tokens = 6
    shared = parent.block_ids[1]
    assert kv.pool.num_free == 6
    copies: list[tuple[int, int]] = []
    assert kv.num_blocks_needed(parent, 1) == 1
    assert kv.allocate(parent, 1, copies) == 1
    assert kv.allocate(children[0], 1, copies) == 1
    assert kv.num_blocks_needed(children[1], 1) == 0
    assert kv.allocate(children[1], 1, copies) == 2
    assert copies == [(shared, parent.block_ids[1]), (shared, children[0].block_ids[1])]
    assert children[1].block_ids[1] == shared
    assert len({request.block_ids[0] for request in (parent, *children)}) == 1
    kv.check_invariants([parent, *children])


def test_fork_at_a_block_border_copies_nothing():
    kv = manager()
    parent, child = sequence(list(range(8))), sequence(list(range(8)), 1)
    compute(kv, parent)
    kv.fork(parent, child)
    child.num_computed_tokens = 8
    copies: list[tuple[int, int]] = []
    for request in (parent, child):
        assert kv.num_blocks_needed(request, 1) == 1
        assert kv.allocate(request, 1, copies) == 2
    assert copies == []


def test_fork_commits_what_its_aborted_parent_could_not():
    kv = manager()
    parent, child = sequence(list(range(6))), sequence(list(range(6)), 1)
    kv.admit(parent, [], 6)
    kv.fork(parent, child)
    child.num_computed_tokens = 6
    kv.free(parent)
    kv.commit(child)
    assert kv.cached_prefix(sequence(list(range(6)))) == child.block_ids[:1]


def test_counts_filled_slots_of_shared_blocks_once():
    kv = manager()
    parent, child = sequence(list(range(6))), sequence(list(range(6)), 1)
    compute(kv, parent)
    kv.fork(parent, child)
    child.num_computed_tokens = 6
    assert kv.num_used_token_slots([parent, child]) == 6
    kv.allocate(child, 3, [])
    assert kv.num_used_token_slots([parent, child]) == 6 + 2
    kv.free(child)
    assert kv.num_used_token_slots([parent]) == 6


def test_reset_needs_an_idle_cache():
    kv = manager()
    first = sequence(list(range(8)))
    compute(kv, first)
    assert not kv.reset_prefix_cache()
    assert kv.cached_prefix(sequence(list(range(9)))) == first.block_ids
    kv.free(first)
    assert kv.reset_prefix_cache()
    assert kv.cached_prefix(sequence(list(range(9)))) == []
