"""Read-only memory maps of checkpoint files."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from interleaf.errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError


def map_file(path: Path) -> np.ndarray:
    """Map a file: uint8 [file size], read-only. The map lives as long as any view of it.

    Raises:
        CheckpointNotFoundError: there is no such file.
        CorruptCheckpointError: it is empty.
        CheckpointError: it may not be read.
    """
    try:
        with path.open("rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)
    except FileNotFoundError:
        raise CheckpointNotFoundError(f"There is no file {path}.") from None
    except ValueError:
        raise CorruptCheckpointError(f"{path.name} is empty: fetch it again.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from None
