# The two commands of the README are `make demo` and `make test`; everything else is a part of them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
BIN := .venv/bin
SCENARIOS := default vllm model_store serving gateway site
SHELL_FILES = $(shell git grep -lE '^\#!/(usr/)?bin/(env )?(ba|da)?sh$$')
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONPATH := $(CURDIR)/module_utils

.PHONY: help setup demo lab lab-down test lint types unit molecule soak

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Create .venv from the hash-locked requirements
	@scripts/setup

demo: lab ## Turn three simulated L40S hosts into a serving fleet
	@ansible-playbook site.yml

lab: setup ## Start the embedded lab: simulated L40S nodes, real systemd, SSH
	@scripts/lab up --name $${L40S_LAB:-demo}

lab-down: setup ## Remove the embedded lab
	@scripts/lab down --name $${L40S_LAB:-demo}

test: lint types unit molecule ## Everything that a maintainer runs before a push

lint: setup ## ruff, yamllint, ansible-lint (production), shellcheck
	@command -v shellcheck >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends shellcheck; } >&2
	ruff check
	ruff format --check
	shellcheck $(SHELL_FILES)
	yamllint --strict .
	ansible-lint

types: setup ## mypy --strict on the core
	mypy

unit: setup ## Unit, property and golden tests
	pytest

molecule: setup ## Every molecule scenario on the lab's nodes
	@scripts/molecule-all $(SCENARIOS)

soak: setup ## The long evidence, or one part of it: make soak PART=kills
	@python tests/soak/run.py $(PART)
