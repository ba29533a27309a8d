# Every word installs what it needs into .venv first. `make` alone lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NEMO_STAMP := $(VENV)/.installed-nemo
INSTALL_INPUTS := setup.py pyproject.toml constraints.txt .ci/install $(wildcard csrc/*)

SLURM_PACKAGES := slurmctld slurmd slurm-client munge procps
INSTALL_SLURM := (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
  --no-install-recommends $(SLURM_PACKAGES)) || \
  { echo "SLURM is not installed: apt-get install $(SLURM_PACKAGES)"; exit 1; }

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup slurm demo test test-slow test-slurm test-nemo test-gpu check format golden clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

setup: $(STAMP)  ## install into .venv

slurm:  ## install the SLURM that test-slurm starts, from the packages of Debian or Ubuntu; needs root
	@test "$$(id -u)" = 0 || { echo "the daemons of the tests' SLURM want root: run sudo make test-slurm"; exit 1; }
	@which slurmctld slurmd munged srun pgrep >/dev/null || $(INSTALL_SLURM)

demo: $(STAMP)  ## cluster, train, mix and compare on the CPU, from the text shipped with the package
	$(BIN)/python -m xelm_nemo.train +experiment=udhr $(ARGS)

test: $(STAMP)  ## the tests that need neither a GPU nor much time
	$(BIN)/python -m pytest $(ARGS)

test-slow: $(STAMP)  ## the tests that take longer than ten seconds each
	$(BIN)/python -m pytest -m slow $(ARGS)

test-nemo: $(NEMO_STAMP)  ## the tests that need NeMo, which is installed into .venv first
	$(BIN)/python -m pytest tests/nemo -m nemo $(ARGS)

test-gpu: $(STAMP)  ## the kernels and everything marked gpu or multigpu, on this machine's GPUs
	$(BIN)/python -m pytest tests/kernels $(ARGS)
	$(BIN)/python -m pytest -m "gpu or multigpu" $(ARGS)

test-slurm: slurm $(STAMP)  ## experts as jobs of a real SLURM, which it starts on this machine; needs root
	$(BIN)/python -m pytest -m slurm $(ARGS)

check: $(STAMP)  ## formatter, linter, spelling and types; changes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/mypy

format: $(STAMP)  ## let ruff lay out the code and mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

golden: $(STAMP)  ## write the tests' golden files anew; look at the difference before you commit it
	$(BIN)/python -m pytest --golden $(ARGS)

clean:  ## remove .venv and everything built; runs stay
	rm -rf $(VENV) build dist *.egg-info xelm_nemo/_csrc*.so .mypy_cache .pytest_cache .ruff_cache

$(STAMP): $(INSTALL_INPUTS)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || { \
	  echo "PYTHON=$(PYTHON) is not Python 3.11 or 3.12; say which is: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python .ci/install
	@touch $@

$(NEMO_STAMP): $(STAMP)
	$(BIN)/python .ci/install nemo
	@touch $@
