"""Messages as bytes: msgpack of the structs in `interleaf.messages`, and nothing else."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import msgspec

from interleaf.config import EngineArgs
from interleaf.messages import FromEngine, SchedulerStats, ToEngine
from interleaf.observe import LogSettings

MAX_MESSAGE_BYTES = 1 << 28
"""Larger messages to the engine are cut off by the socket; a prompt of a million tokens has 5 MB."""


START_LENGTH = struct.Struct("<I")
"""Stands before the `EngineStart` on standard input, which goes on behind it."""


class EngineStart(msgspec.Struct, array_like=True):
    """What a new engine process reads from its standard input.

    Fields:
        address: of the socket to listen on.
        step_record: file for `interleaf.engine.step_record`.
        log: how to write its log, which goes to the same stderr as its parent's.
        before: counters of the engines before it, which it goes on with.
    """

    args: EngineArgs
    address: str
    step_record: str
    log: LogSettings = msgspec.field(default_factory=LogSettings)
    before: SchedulerStats = msgspec.field(default_factory=SchedulerStats)


def _encodable(value: object) -> Any:
    """Read-only views of mappings, which configs have, go as mappings."""
    if isinstance(value, Mapping):
        return dict(value)
    raise NotImplementedError(f"{type(value).__name__} has no form on the wire")


_encoder = msgspec.msgpack.Encoder(enc_hook=_encodable)
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


def encode(message: ToEngine | FromEngine | EngineStart) -> bytes:
    return _encoder.encode(message)


def decode_to_engine(raw: bytes) -> ToEngine:
    """
    Raises:
        Exception: of whatever kind; it is no message to an engine, or a value in it is out of range.
    """
    return _to_engine.decode(raw)


def decode_from_engine(raw: bytes) -> FromEngine:
    """
    Raises:
        msgspec.DecodeError: it is no message of an engine.
    """
    return _from_engine.decode(raw)


def decode_start(raw: bytes) -> EngineStart:
    return msgspec.msgpack.decode(raw, type=EngineStart)
