"""The server's log: one handler for this package, the HTTP library and Python's warnings, as text or as JSON."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import msgspec

PACKAGE = "interleaf"
OTHERS = ("uvicorn", "py.warnings")
"""Loggers whose warnings belong to this log as well."""
FORMATS = ("text", "json")


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode({key: _encodable(text) for key, text in line.items()}).decode()


def configure(log_format: str, level: str | None) -> None:
    """Set up the log behind `interleaf.observe.configure_logging`, which has made the handler.

    Args:
        log_format: one of FORMATS.
        level: None leaves it as it is.
    """
    package = logging.getLogger(PACKAGE)
    if level is not None:
        package.setLevel(level)
    if log_format == "json":
        for handler in package.handlers:
            handler.setFormatter(JsonFormatter())
    logging.captureWarnings(True)
    for name in OTHERS:
        other = logging.getLogger(name)
        other.handlers = list(package.handlers)
        other.propagate = False
        other.setLevel(max(logging.WARNING, package.level))


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
