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
	@$(UV) pip install -q --python $(PYTHON) -c requirements/constraints.txt -e '.[controller,trainer,datasets,server,cli]' --group test --group lint
	@touch $@

.PHONY: venv lock
venv: .venv/.done ## Make the Python environment of the tests and the command line
lock: | $(UV) ## Renew requirements/constraints.txt from pyproject.toml
	@{ echo '# Made by `make lock` from pyproject.toml: one version of every package for every image and test, no hosts.'; \
	  UV_FIND_LINKS= $(UV) pip compile -q pyproject.toml --all-extras --group test --group lint --universal --no-header --no-annotate --no-emit-index-url; } > requirements/constraints.txt
