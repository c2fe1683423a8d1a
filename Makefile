# Every target works on a fresh machine with python3.11, python3-venv, git and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# CPU wheels of torch; `make TORCH_INDEX=... quickstart` takes another build.
export TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-full lint slurm bench clean

help:  ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile

quickstart: .venv/.run  ## install, run a small scaling study, fit and report it (6 minutes on 2 cores)
	$(BIN)/isoflop run studies/quickstart.yaml

test: lint slurm  ## install, lint and run the tests (15 minutes on 2 cores)
	$(BIN)/pytest -m "not full" --durations=20

test-full: lint slurm  ## the same with the long repetitions: more kills, whole parity matrices
	$(BIN)/pytest

lint: .venv/.test  ## ruff, mypy and the import contracts of setup.cfg
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

slurm:  ## a Slurm for the tests, which start four nodes of it on this machine (wants root and apt)
	.ci/slurm

bench: .venv/.test  ## side-by-side measurements against peers; wants a quiet machine
	for program in benchmarks/*.py; do $(BIN)/python $$program || exit 1; done

clean:  ## remove the environment and caches, never runs
	rm -rf .venv *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

.venv/.run: setup.cfg constraints.txt .ci/install
	.ci/install "$(PYTHON)" run,local
	@touch $@

.venv/.test: .venv/.run
	.ci/install "$(PYTHON)" run,local,test
	@touch $@
