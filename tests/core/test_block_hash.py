from interleaf.core.block_hash import block_hash, root_hash


def test_hash_depends_on_parent_tokens_and_their_order():
    root = root_hash([])
    hashes = [
        block_hash(root, [1, 2]),
        block_hash(root, [2, 1]),
        block_hash(root, [1, 2, 0]),
        block_hash(block_hash(root, [1, 2]), [1, 2]),
        block_hash(root_hash([("cache_salt", "")]), [1, 2]),
    ]
    assert len(set(hashes)) == len(hashes)
    assert block_hash(root, [1, 2]) == hashes[0]


def test_extra_keys_are_told_apart_by_tag_and_by_length():
    roots = [
        root_hash([]),
        root_hash([("cache_salt", "a")]),
        root_hash([("adapter", "a")]),
        root_hash([("cache_salt", "ab")]),
        root_hash([("cache_salt", "a"), ("adapter", "b")]),
        root_hash([("cache_salt", "aadapterb")]),
    ]
    assert len(set(roots)) == len(roots)
