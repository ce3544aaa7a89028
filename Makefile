# Everything runs in .venv, which the first target that needs it sets up; nothing is installed by hand.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test parity lint types format wheel clean

demo: .venv/runtime
	$(BIN)/acestep-gguf demo

test: .venv/dev
	$(BIN)/pytest

# Compares with transformers, live.
parity: .venv/reference
	$(BIN)/pytest -m parity

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The training scripts need torch's types.
types: .venv/reference
	$(BIN)/mypy

wheel: .venv/dev
	$(BIN)/python -m build --wheel

clean:
	rm -rf build dist *.egg-info .venv

# The set-up, a stamp for each stage. llama-cpp-python is compiled here, once: about six minutes on two cores.
.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv .venv

.venv/runtime: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet --editable '.[convert]'
	touch $@

.venv/dev: .venv/runtime
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

.venv/reference: .venv/dev
	$(BIN)/pip install --quiet --editable '.[reference]'
	touch $@
