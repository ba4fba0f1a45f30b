"""Which sampling defaults apply: the checkpoint's, another file's or none, and what overrides them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from interleaf.config import EngineArgs
from interleaf.errors import ConfigError

ENDS = "eos_token_id"
"""What ends a text is no matter of taste: it stays as the checkpoint has it, unless it is overridden."""


def generation_config(args: EngineArgs, own: Mapping[str, Any]) -> dict[str, Any]:
    """The generation_config.json to go by.

    Args:
        own: the checkpoint's.

    Raises:
        ConfigError: the file that is named cannot be read, or what shall override it is no JSON object.
    """
    kept = {ENDS: own[ENDS]} if ENDS in own else {}
    override = args.override_generation_config or {}
    if isinstance(override, str):
        override = _object(override.encode(), "override_generation_config")
    if args.generation_config == "auto":
        chosen = dict(own)
    elif args.generation_config == "vllm":
        chosen = kept
    else:
        path = Path(args.generation_config)
        path = path / "generation_config.json" if path.is_dir() else path
        try:
            chosen = {**kept, **_object(path.read_bytes(), f"generation_config {str(path)!r}")}
        except OSError as error:
            raise ConfigError(
                f"generation_config must be auto, vllm, or a directory with a generation_config.json; {str(path)!r} "
                f"cannot be read ({error.strerror})."
            ) from None
    return {**chosen, **override}


def _object(raw: bytes, what: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.DecodeError, ValueError):
        raise ConfigError(f"{what} is no JSON object.") from None
