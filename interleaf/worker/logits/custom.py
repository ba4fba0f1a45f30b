"""Custom logits processors: given as classes, named as "module:Class", or installed as entry points."""

from __future__ import annotations

import importlib
import operator
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

from interleaf.errors import ConfigError, ParameterError
from interleaf.logits_processor import LogitsProcessor
from interleaf.params import SamplingParams

GROUP = "interleaf.logits_processors"
"""The group of entry points; every processor in it is used."""

Given = str | type[Any]
ProcessorClass = type[LogitsProcessor[Any]]


def load_custom(given: Sequence[Given]) -> list[ProcessorClass]:
    """The processors that were given, in their order, behind those of installed packages; each once.

    Raises:
        ConfigError: one cannot be imported, or is none.
    """
    if isinstance(given, (str, type)):
        given = [given]
    found = [_installed(entry) for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)]
    found += [_checked(one if isinstance(one, type) else _imported(one), one) for one in given]
    return list(dict.fromkeys(found))


def importable(given: Sequence[Given]) -> tuple[str, ...]:
    """The same processors as names, by which another process can import them.

    Raises:
        ConfigError: a class is none of a module's own, or of the main script.
    """
    if isinstance(given, (str, type)):
        given = [given]
    return tuple(one if isinstance(one, str) else _name(one) for one in given)


def validate_params(processors: Sequence[ProcessorClass], params: SamplingParams) -> None:
    """Let each processor look at a request's parameters.

    Raises:
        ParameterError: one refuses them.
    """
    for processor in processors:
        try:
            processor.validate_params(params)
        except ParameterError:
            raise
        except Exception as error:
            raise ParameterError(
                f"The logits processor {processor.__name__} refuses the request: {error}", "extra_args"
            ) from error


def _installed(entry: Any) -> ProcessorClass:
    try:
        loaded = entry.load()
    except Exception as error:
        raise ConfigError(f"The installed logits processor {entry.value!r} cannot be imported ({error}).") from error
    return _checked(loaded, entry.value)


def _imported(name: str) -> object:
    module, _, path = name.partition(":")
    if not module or not path:
        raise ConfigError(f"The logits processor {name!r} must be named as module:Class.")
    try:
        return operator.attrgetter(path)(importlib.import_module(module))
    except Exception as error:
        raise ConfigError(
            f"The logits processor {name!r} cannot be imported ({error}): is its directory in PYTHONPATH?"
        ) from error


def _checked(found: object, given: object) -> ProcessorClass:
    if isinstance(found, type) and issubclass(found, LogitsProcessor):
        return found
    raise ConfigError(f"{given!r} is no logits processor: it must be a class derived from interleaf.LogitsProcessor.")


def _name(processor: type[Any]) -> str:
    module, path = processor.__module__, processor.__qualname__
    if module == "__main__" or "<locals>" in path:
        raise ConfigError(
            f"The logits processor {path} cannot be imported by the engine's process: put it at the top level of a "
            f"module that is in PYTHONPATH."
        )
    return f"{module}:{path}"
