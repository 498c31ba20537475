# `make help` lists what there is.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
PRESET ?= quick
# where the notebooks run; workflow/profiles/slurm: on a cluster
PROFILE ?=
BIN := .venv/bin
READY := .venv/.installed
# pip prints some thousand lines; this keeps the downloads that take time
BIG := sed -unE 's|^ *Downloading (.*/)?([^/ ]+) \(([0-9.]+ [MG]B)\).*|    \2  \3|p; s|^Installing collected.*|    unpacking|p'

# natural: steps of each network's training (the recipe's, if empty); a training that was stopped (timeout -s INT) goes on
STEPS ?=
DEVICE ?= cuda

# the tests of a file stay in one process, which keeps what they share; the files that take long come first (tests/conftest.py)
SPREAD := -n auto --dist loadfile --no-loadscope-reorder

.PHONY: help book html publish natural benchmarks test test-fast lint lock clean
help: ## show this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' Makefile | expand -t 20

book: $(READY) ## run every notebook (PRESET=smoke|quick|standard|full|paper; default quick: some 4 minutes on two cores), build the book
	@$(BIN)/python book/build.py run --preset $(PRESET) --profile '$(PROFILE)'

html: $(READY) ## build the committed book as it is; runs nothing
	@$(BIN)/python book/build.py html

publish: $(READY) ## run every notebook at PRESET and replace the committed ones in book/
	@$(BIN)/python book/build.py run --preset $(PRESET) --profile '$(PROFILE)' --publish

natural: $(READY) ## train larger networks of natural images, ship and measure them (a GPU; images in DODE_DATA; STEPS=)
	@$(BIN)/dode train imagenet32 --large --out runs --device $(DEVICE) --ship $(if $(STEPS),--steps $(STEPS))
	@$(BIN)/python -m book.prose
	@$(BIN)/python book/build.py run --preset $(if $(filter command line,$(origin PRESET)),$(PRESET),full) \
	  --profile '$(PROFILE)' --publish

benchmarks: $(READY) ## time dode beside diffusers and the bare networks, into results/ (DEVICE=cuda or cpu; best alone on the machine)
	@for name in loop network_share throughput distillation_cost bf16; do \
	  echo "$$name:"; $(BIN)/python benchmarks/$$name.py --device $(DEVICE); done

test: $(READY) ## run the tests, notebooks and pages included, a process a core
	@$(BIN)/python -m pytest $(SPREAD)

test-fast: $(READY) ## run the tests that start no other program and end within a minute
	@$(BIN)/python -m pytest $(SPREAD) -p no:nbval -m 'not slow' --hypothesis-profile fast

lint: $(READY) ## check style and types
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

lock: ## renew requirements.lock from pyproject.toml (UPGRADE=1: to the newest versions)
	@$(PYTHON) -m venv _build/uv && _build/uv/bin/pip install -q uv
	@UV_CUSTOM_COMPILE_COMMAND="make lock" _build/uv/bin/uv pip compile pyproject.toml -o requirements.lock -q \
	  --all-extras --universal --python-version 3.11 --no-annotate --no-emit-index-url $(if $(UPGRADE),--upgrade)

clean: ## remove what make built, except .venv
	@rm -rf _build .snakemake build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The stamp is written last: an interrupted installation is taken up again.
$(READY): pyproject.toml requirements.lock requirements-galaxies.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "dode needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1 || true). Try: make PYTHON=python3.12"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "creating .venv"; $(PYTHON) -m venv --clear .venv; }
	@echo "installing into .venv (once; some minutes, torch is large)"
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input -r requirements.lock | $(BIG)
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input -q --no-deps --no-build-isolation -e .
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input -q --no-deps -r requirements-galaxies.lock || \
	  echo "galaxygrad cannot be had here: what needs its networks of galaxies is skipped"
	@touch $@
