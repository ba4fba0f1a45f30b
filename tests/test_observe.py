"""The log: its formats, and how another process comes to write the same."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from interleaf.errors import ConfigError
from interleaf.observe import LOG_LEVEL_VARIABLE, PACKAGE, JsonFormatter, LogSettings, configure_logging


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """The package's logger, with nothing set up."""
    monkeypatch.delenv(LOG_LEVEL_VARIABLE, raising=False)
    logger = logging.getLogger(PACKAGE)
    before = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [], True
    yield logger
    logger.handlers, logger.level, logger.propagate = before
    logging.captureWarnings(False)


def test_json_logs() -> None:
    record = logging.LogRecord("interleaf.x", logging.INFO, "f", 1, "a %s \ud800\n", ("b",), None)
    line = JsonFormatter().format(record)
    assert "\n" not in line and json.loads(line)["message"] == "a b \\ud800\n" and json.loads(line)["level"] == "INFO"


def test_settings_are_found_again(package: logging.Logger) -> None:
    assert LogSettings.current() == LogSettings()
    for settings in (LogSettings("INFO"), LogSettings("ERROR", json=True), LogSettings("DEBUG")):
        configure_logging(settings)
        assert LogSettings.current() == settings
    assert len(package.handlers) == 1


def test_where_the_level_comes_from(package: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    configure_logging(default_level="INFO")
    assert package.level == logging.INFO
    monkeypatch.setenv(LOG_LEVEL_VARIABLE, "error")
    configure_logging(default_level="INFO")
    assert package.level == logging.ERROR
    configure_logging(LogSettings("DEBUG"))
    assert package.level == logging.DEBUG
    monkeypatch.setenv(LOG_LEVEL_VARIABLE, "loud")
    with pytest.raises(ConfigError):
        configure_logging()
