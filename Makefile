# Two commands do all set-up on a fresh machine: `make demo` and `make test`.
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: demo test lint faults slow bench clean

demo: $(VENV)/installed
	$(BIN)/fewstep run emoji-one-step

test: $(VENV)/installed lint
	$(BIN)/pytest

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

faults slow: $(VENV)/installed
	$(BIN)/python -m tests.tier $@

bench: $(VENV)/installed
	$(BIN)/python -m tests.benchmarks

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[evaluation,dashboards,trackers,development]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
