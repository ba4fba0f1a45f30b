"""The bytes that each token of a tokenizer stands for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers

SPACE = "\u2581"


class TokenBytes:
    """Token id -> the bytes it stands for, for tokenizers where that does not depend on its neighbours.

    That holds for byte-level BPE and for SentencePiece with byte fallback, but for one thing: the
    latter may drop one space at the very beginning of a text (`strips_first_space`).
    """

    def __init__(self, backend: tokenizers.Tokenizer, byte_level: bool, strips_first_space: bool) -> None:
        self.strips_first_space = strips_first_space
        self._backend = backend
        self._byte_level = byte_level
        self._known: dict[int, bytes] = {}

    @staticmethod
    def of(backend: tokenizers.Tokenizer) -> TokenBytes | None:
        """The table for a tokenizer, or None if its tokens have no bytes of their own."""
        decoder = backend.decoder
        if decoder is None:
            return None
        steps = _steps(json.loads(decoder.__getstate__()))
        kinds = [step["type"] for step in steps]
        if kinds == ["ByteLevel"]:
            return TokenBytes(backend, byte_level=True, strips_first_space=False)
        if kinds[:3] != ["Replace", "ByteFallback", "Fuse"] or steps[0].get("pattern") != {"String": SPACE}:
            return None
        if kinds[3:] and (kinds[3:] != ["Strip"] or (steps[3]["content"], steps[3]["start"]) != (" ", 1)):
            return None
        return TokenBytes(backend, byte_level=False, strips_first_space=bool(kinds[3:]))

    def __getitem__(self, token_id: int) -> bytes:
        found = self._known.get(token_id)
        if found is None:
            token = self._backend.id_to_token(token_id)
            found = self._known[token_id] = b"" if token is None else self._spell(token)
        return found

    def _spell(self, token: str) -> bytes:
        if self._byte_level:
            alphabet = byte_alphabet()
            spelled = [alphabet.get(character) for character in token]
            return token.encode() if None in spelled else bytes(byte for byte in spelled if byte is not None)
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                pass
        return token.replace(SPACE, " ").encode()


def byte_alphabet() -> dict[str, int]:
    """The 256 printable characters by which byte-level BPE writes bytes: character -> byte."""
    if not _ALPHABET:
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in printable]
        _ALPHABET.update({chr(byte): byte for byte in printable})
        _ALPHABET.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return _ALPHABET


_ALPHABET: dict[str, int] = {}


def _steps(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    """A decoder's steps in order, sequences taken apart."""
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for part in decoder["decoders"] for step in _steps(part)]
