# The two commands of the README, and what CI runs. Everything happens in .venv; nothing else is touched.
PYTHON ?= python3
BIN := .venv/bin

# uv and pip compile bytecode only where this is unset, and imports take twice as long without it
unexport PYTHONDONTWRITEBYTECODE

.PHONY: compare test test-all check

compare: .venv/installed
	$(BIN)/shiftproof compare

test: .venv/installed
	$(BIN)/pytest -n auto -m "not slow"

test-all: .venv/installed
	$(BIN)/pytest -n auto

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@
