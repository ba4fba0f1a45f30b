"""Fetching a model from the hub, or finding it in the hub's local cache.

Without a network the answer comes at once: one probe with a short timeout decides before the
client library starts to download, since its own retries take minutes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from interleaf.errors import CheckpointError, CheckpointNotFoundError

NAME_PATTERN = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
TOKENIZER_FILES = ("*.json", "*.jinja", "tokenizer.model", "*.txt")
MODEL_FILES = ("*.safetensors", *TOKENIZER_FILES)
PROBE_SECONDS = 5.0


def is_hub_name(model: str) -> bool:
    """Whether `model` has the form of a hub name, "organization/model"."""
    return NAME_PATTERN.fullmatch(model) is not None


def fetch(name: str, revision: str | None, patterns: Sequence[str] = MODEL_FILES) -> Path:
    """Bring the files that match `patterns` into the hub's cache and return their directory.

    Offline, what the cache holds is used.

    Raises:
        CheckpointNotFoundError: the hub has no such model or revision, or cannot be reached and the
            cache does not hold it.
        CheckpointError: the model is gated, or the download failed.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    offline = constants.HF_HUB_OFFLINE or not _is_reachable(name, revision)
    try:
        directory = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=list(patterns), local_files_only=offline
        )
    except errors.LocalEntryNotFoundError:
        raise CheckpointNotFoundError(
            f"{name} is no file or directory here, and the model hub cannot be reached: "
            f"give a model directory or a .gguf file, or connect."
        ) from None
    except Exception as error:
        raise CheckpointError(f"Fetching {name} from the model hub failed ({_first_line(error)}): try again.") from None
    return Path(directory)


def _is_reachable(name: str, revision: str | None) -> bool:
    """Ask the hub for the model, once. False if the hub does not answer."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        huggingface_hub.HfApi().model_info(name, revision=revision, timeout=PROBE_SECONDS)
    except errors.GatedRepoError:
        raise CheckpointError(f"{name} is gated: ask for access on the model hub and log in with its client.") from None
    except errors.RevisionNotFoundError:
        raise CheckpointNotFoundError(f"{name} has no revision {revision} on the model hub.") from None
    except errors.RepositoryNotFoundError:
        raise CheckpointNotFoundError(
            f"{name} is neither here nor on the model hub: give a model directory, a .gguf file or a name that exists."
        ) from None
    except Exception:
        # Whatever keeps the hub from answering (DNS, proxy, TLS, a captive portal) means the same here.
        return False
    return True


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:")[:200] if lines else type(error).__name__
