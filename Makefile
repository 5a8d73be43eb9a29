# The only entry point. CI runs the same targets. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready
PACKAGES := libs/protogen libs/servicekit libs/client libs/catalogue libs/transparency libs/testkit services/keyvault services/router services/metering

SERVICES := keyvault router metering
# What an image holds beside a service's own lock; built from this tree, so never locked.
OWN     := byok-catalogue byok-protogen byok-servicekit byok-transparency
COMPILE := $(BIN)/uv pip compile -q --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links

export PYTHONDONTWRITEBYTECODE := 1
# Who has no home to write to keeps what package managers cache beside the tree.
ifneq ($(shell test -n "$$HOME" && test -w "$$HOME" && echo yes),yes)
export UV_CACHE_DIR ?= $(CURDIR)/.cache/uv
export npm_config_cache ?= $(CURDIR)/.cache/npm
endif

# What the contract must not break: the image of the last release.
RELEASE := $(shell sed -n 's/^version = "\(.*\)"/\1/p' libs/protogen/pyproject.toml)
IMAGE   := $(lastword $(shell ls protos/image/*.binpb 2>/dev/null | sort -V))

.PHONY: help setup lock fmt lint type imports protos protos-check protos-release manifests test demo serve chaos fuzz bench bench-peers check clean

help: ## List the targets.
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-15s %s\n", $$1, $$2}'

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
	$(COMPILE) --upgrade requirements.in -o requirements.txt
	$(COMPILE) --upgrade --no-emit-package grpc-stubs -c requirements.txt requirements-dev.in -o requirements-dev.txt
	$(COMPILE) --upgrade -c requirements-dev.txt requirements-build.in -o requirements-build.txt
	for service in $(SERVICES); do $(COMPILE) --upgrade $(addprefix --no-emit-package ,$(OWN)) -c requirements.txt services/$$service/pyproject.toml -o services/$$service/requirements.txt; done

fmt: $(STAMP) ## Format Python and protos, and mend what can be mended.
	$(BIN)/ruff check -q --fix-only .
	$(BIN)/ruff format -q .
	$(BIN)/buf format -w protos

lint: $(STAMP) ## Check format, lint and spelling.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell

type: $(STAMP) ## Check types, strictly, over everything.
	$(BIN)/mypy .

imports: $(STAMP) ## Check that layers and services keep apart.
	$(BIN)/lint-imports --no-logo

protos: $(STAMP) ## Generate the stubs in libs/protogen from protos/.
	$(BIN)/python protos/generate.py write

protos-check: $(STAMP) ## Check the contract: style, format, stubs without drift, nothing broken since the last release.
	$(BIN)/python protos/generate.py check
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code protos
	@test -n "$(IMAGE)" || { echo "protos: no image of a release in protos/image; make protos-release writes one"; exit 1; }
	$(BIN)/buf breaking protos --against $(IMAGE)

protos-release: $(STAMP) ## Write the image of this release, which later contracts must not break.
	@mkdir -p protos/image
	$(BIN)/buf build protos --exclude-source-info -o protos/image/$(RELEASE).binpb

manifests: $(STAMP) ## Render the Kubernetes manifests and validate them, without kubectl.
	$(BIN)/python -m deploy.kubernetes.manifests

# Where the client in another language finds its packages; beside the tree, so that nothing installed stands in it.
NODE_CLIENT := tests/contract/node_client
NODE_STAMP  := .cache/node_client/.ready

# Node.js comes from the lock, as a wheel: the machine needs none.
$(NODE_STAMP): $(STAMP) $(NODE_CLIENT)/package.json $(NODE_CLIENT)/package-lock.json $(NODE_CLIENT)/.npmrc
	@echo "setup: installing the Node client's packages"
	@mkdir -p $(@D)
	@cp $(filter $(NODE_CLIENT)/%,$^) $(@D)
	@cd $(@D) && PATH=$(CURDIR)/$(BIN):$$PATH npm ci --ignore-scripts --loglevel=error --no-progress >/dev/null
	@touch $@

# A PKCS#11 token in software, for the tests of root keys: the machine's own, else one fetched and kept beside the tree.
SOFTHSM_STAMP := .cache/softhsm/.ready

$(SOFTHSM_STAMP): libs/testkit/get_softhsm.sh
	@bash $< $(@D)
	@touch $@

# Two processes, each with whole files: fixtures of a file stay together, and two cores are kept busy.
test: $(STAMP) $(NODE_STAMP) $(SOFTHSM_STAMP) ## Run every test.
	$(BIN)/pytest -q -n 2 --dist loadfile

demo: $(STAMP) ## Run the main job end to end, on an embedded stack.
	@$(BIN)/python -m examples.demo

serve: $(STAMP) ## Keep the stack running; print addresses, certificates and a call to paste.
	@$(BIN)/python -m testkit.stack

chaos: $(STAMP) ## Run only what kills, stalls and loses real processes.
	BYOK_TEST_CHAOS_ROUNDS=5 $(BIN)/pytest -q tests/chaos

fuzz: $(STAMP) ## Fuzz every parser, guided by coverage; SECONDS=60 is for each, TARGET=envelope picks one.
	@$(BIN)/python -m tests.fuzz.run $(TARGET) --seconds $(if $(filter command line environment,$(origin SECONDS)),$(SECONDS),60)

bench: $(STAMP) ## Measure, against floors, bars and peers; ONLY=router measures a part, QUICK=1 briefly.
	@$(BIN)/python -m bench.run

bench-peers: $(STAMP) ## Install the gateways that `make bench` compares with, into bench/.peers.
	@$(BIN)/python -m bench.peers.install

check: lint type imports protos-check manifests test ## All that CI asks.

clean: ## Remove the environment and what builds left.
	rm -rf $(VENV) .cache .run build dist
