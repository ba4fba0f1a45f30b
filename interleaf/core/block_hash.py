"""The hash chain that names the contents of full KV blocks.

The keys and values in a block depend on every token up to its end and on what else changes the
model's computation, so a block's hash covers its parent's hash and its own tokens, and the chain
starts from a hash of everything else. Hashes are BLAKE2b with 256 bits: tenants share the cache,
and a collision would show one the context of another.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b

HASH_BYTES = 32


def root_hash(extra_keys: Iterable[tuple[str, str]]) -> bytes:
    """Parent of a sequence's first block, over `(tag, value)` pairs such as ("cache_salt", "tenant-7").

    Each part goes in with its length, so that no two lists of pairs give the same bytes.
    """
    digest = blake2b(digest_size=HASH_BYTES)
    for pair in extra_keys:
        for part in pair:
            encoded = part.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.digest()


def block_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Hash of a full block that holds `token_ids` and follows the block (or root) hashed `parent`."""
    return blake2b(parent + array("q", token_ids).tobytes(), digest_size=HASH_BYTES).digest()
