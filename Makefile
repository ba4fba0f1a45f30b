# make demo   a real model answers a question
# make test   the tests
# make check  lint, format, types, layers
# make bench  throughput of the built-in model

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml CMakeLists.txt $(shell find csrc -type f)

.PHONY: demo test check format bench stubs clean

demo: $(VENV)/.runtime
	$(BIN)/interleaf generate "What is the capital of France?"

test: $(VENV)/.development
	$(BIN)/python -m pytest

check: $(VENV)/.development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.development
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.runtime
	$(BIN)/interleaf bench throughput

# The types of the native module, as mypy reads them; run after changing csrc/bindings.cpp.
stubs: $(VENV)/.development
	$(BIN)/python -m nanobind.stubgen -m interleaf._native -o interleaf/_native.pyi

clean:
	rm -rf $(VENV) build

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# Each stamp is newer than what was installed; a changed source rebuilds the native library.
$(VENV)/.runtime: $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.development: $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.runtime
