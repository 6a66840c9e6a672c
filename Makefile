# make run, make test: all that is needed is Python 3.11 or newer with pip; everything else goes into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup run test test-slow lint docs bench

setup: $(READY)

# The exact versions of constraints.txt; torch first and alone, so that pip takes the build that it finds for this machine.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt torch
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	touch $@

run: setup
	$(BIN)/python train.py

# Two test processes of one thread each: no more than two cores.
test test-slow: export OMP_NUM_THREADS = 1

# ONNX Runtime and OpenVINO get processes of their own: beside everything else in one process they crash it at random.
test: lint
	$(BIN)/python -m pytest -m "not slow and not runtimes" -n 2 --durations=20
	$(BIN)/python -m pytest -m "not slow and runtimes" -n 2 --durations=20

test-slow: setup
	$(BIN)/python -m pytest -m "slow and not runtimes" -n 2
	$(BIN)/python -m pytest -m "slow and runtimes" -n 2

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup
	$(BIN)/python -m pip install -q -c constraints.txt "mkdocs-material" "latex2mathml"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench: setup
	$(BIN)/python benchmarks/cost.py
