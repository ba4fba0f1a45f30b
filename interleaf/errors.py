"""The exceptions that users see.

    InterleafError
    ├── ConfigError                  (ValueError)    a flag or argument has a value that cannot work
    ├── CheckpointError              (ValueError)    the model's files cannot be used
    │   ├── CheckpointNotFoundError  (also FileNotFoundError)  no such file, directory or model name
    │   ├── CorruptCheckpointError   truncated, inconsistent or hostile files
    │   └── UnsupportedModelError    well-formed, but nothing here can run it
    ├── RequestError                 (ValueError)    one request is wrong; the engine is unharmed
    │   ├── ParameterError           a sampling parameter is out of range or of the wrong type
    │   │   └── GrammarError         a schema, regex or grammar that the text shall follow cannot be used
    │   ├── PromptTooLongError       the prompt leaves no room in the context
    │   └── OverloadedError          too many requests wait already; ask again later
    ├── InsufficientMemoryError      (MemoryError)   not enough memory for what was asked
    ├── DeadlineExceededError        (TimeoutError)  a request did not end within the time it was given
    └── EngineError                  (RuntimeError)  a fault of ours, not of the input
        ├── EngineDeadError          the engine has stopped and takes no more requests
        ├── EngineRestartingError    the engine is being started again; ask again soon
        └── RequestFailedError       one request could not be finished; the engine goes on

Every message is one sentence that names the cause and the remedy. Errors of third-party libraries
are turned into these where they are called, and never reach a user bare.
"""

from __future__ import annotations


class InterleafError(Exception):
    """Base of everything interleaf raises on purpose."""


class ConfigError(InterleafError, ValueError):
    """A flag or argument has a value that cannot work."""


class CheckpointError(InterleafError, ValueError):
    """The model's files cannot be used."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no such file, directory or model name."""


class CorruptCheckpointError(CheckpointError):
    """A checkpoint file is truncated, contradicts itself, or points outside of itself."""


class UnsupportedModelError(CheckpointError):
    """The checkpoint is well-formed, but its architecture or format is not implemented."""


class RequestError(InterleafError, ValueError):
    """One request is wrong. `param` names the offending field where there is one."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ParameterError(RequestError):
    """A sampling parameter is out of range or of the wrong type."""


class GrammarError(ParameterError):
    """A schema, regex or grammar that the text shall follow cannot be used."""


class PromptTooLongError(RequestError):
    """The prompt does not fit the context."""


class OverloadedError(RequestError):
    """Too many requests wait already. `retry_after` is a guess, in seconds, at when there is room again."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class InsufficientMemoryError(InterleafError, MemoryError):
    """There is not enough memory for what was asked."""


class DeadlineExceededError(InterleafError, TimeoutError):
    """A request did not end within the time it was given."""


class EngineError(InterleafError, RuntimeError):
    """A fault of the engine, not of its input."""


class EngineDeadError(EngineError):
    """The engine has stopped and takes no more requests."""


class EngineRestartingError(EngineError):
    """The engine is being started again, and the caller did not want to wait (any longer)."""


class RequestFailedError(EngineError):
    """One request could not be finished; the engine and the other requests go on."""
