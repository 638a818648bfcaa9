# The two commands of the README, and what CI runs. Everything happens in .venv, .venv-oldest and .venv-newest; nothing else is touched.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= runs/check-gpu
TESTING := expecttest hypothesis pytest pytest-timeout pytest-xdist

# uv and pip compile bytecode only where this is unset, and imports take twice as long without it
unexport PYTHONDONTWRITEBYTECODE

# a test process per core: threads of their own would only wait for each other
test test-all test-oldest test-newest: export OMP_NUM_THREADS = 1

.PHONY: compare test test-all test-oldest test-newest check docs check-gpu

compare: .venv/installed
	$(BIN)/shiftproof compare --averaging none ema

test: .venv/installed
	$(BIN)/pytest -n auto -m "not slow"

test-all: .venv/installed
	$(BIN)/pytest -n auto

# the tests of the core with the oldest and the newest versions that pyproject.toml allows, each in an environment of its own
test-oldest test-newest: test-%: .venv-%/installed
	.venv-$*/bin/pytest -n auto -m "not slow" $(addprefix tests/,annealing base diagnostics gradients optim)

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pyright

# The site in site/, which opens without a server: every warning is an error, and nothing comes from the network.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --clean

# What is right and fast on this machine's GPU, in at most eight minutes: docs/benchmarks/gpu.md. Installs nothing:
# without .venv it takes $(PYTHON) with what is there. DRY=1 tries the checks themselves on the CPU, OUT=DIR is where to write.
check-gpu:
	PYTHONPATH="$(CURDIR)/src" $(or $(wildcard $(BIN)/python),$(PYTHON)) -m benchmarks.check_gpu --output "$(OUT)" $(if $(DRY),--dry)

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

.venv-oldest/installed: CONSTRAINTS = -c .venv-oldest/constraints.txt
.venv-oldest/installed .venv-newest/installed: .venv-%/installed: pyproject.toml .ci/lower_bounds.py
	$(PYTHON) -m venv .venv-$*
	$(PYTHON) .ci/lower_bounds.py > .venv-$*/constraints.txt
	.venv-$*/bin/pip install --quiet $(CONSTRAINTS) -e '.[bench]' $(TESTING)
	touch $@
