# The only entry point. CI runs the same targets. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready
PACKAGES := libs/protogen libs/servicekit libs/client libs/catalogue libs/testkit services/keyvault services/router services/metering

export PYTHONDONTWRITEBYTECODE := 1

.PHONY: help setup lock

help: ## List the targets.
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

setup: $(STAMP) ## Make .venv from the lock; fast the second time.

$(STAMP): requirements-dev.txt $(addsuffix /pyproject.toml,$(PACKAGES))
	@echo "setup: making $(VENV) from the lock"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --require-hashes --no-deps -r <(awk '/^uv==/{p=1} p{print} p&&!/\\$$/{exit}' requirements-dev.txt)
	@echo "setup: installing the locked packages"
	@$(BIN)/uv pip sync -q --python $(BIN)/python --require-hashes requirements-dev.txt
	@echo "setup: linking the suite's own packages"
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation $(addprefix -e ,$(PACKAGES))
	@touch $@

lock: $(STAMP) ## Lock the dependencies again, with hashes.
	$(BIN)/uv pip compile -q --upgrade --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links requirements.in -o requirements.txt
	$(BIN)/uv pip compile -q --upgrade --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-emit-package grpc-stubs -c requirements.txt requirements-dev.in -o requirements-dev.txt
