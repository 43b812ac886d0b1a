# The two commands of the README are `make demo` and `make test`; everything else is a part of them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
BIN := .venv/bin
SCENARIOS := default host nvidia_driver vllm model_store quantize sharing kinds speculation triton multi_node serving gateway site
# Not in it, for their minutes: rolling and benchmark, each a part of `make soak`.
SHELL_FILES = $(shell git grep -lE '^\#!/(usr/)?bin/(env )?(ba|da)?sh$$')
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONPATH := $(CURDIR)/module_utils

.PHONY: help setup demo lab lab-down test lint types unit test-lab engine-tests report-tests conformance bench molecule soak

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

# What two jobs would install at once is there before they start: apt has one lock.
test: setup need-shellcheck need-haproxy ## Everything that a maintainer runs before a push
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=line unit lint types
	@$(MAKE) --no-print-directory test-lab report-tests engine-tests molecule

test-lab: setup
	@scripts/lab up --name $${L40S_TEST_LAB:-test}

# A program that tests run comes from Debian's package of its name, and what else belongs to it, where it is missing.
need-chromium: NEEDS := fonts-dejavu-core
need-%:
	@command -v $* >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends $* $(NEEDS); } >&2

lint: setup need-shellcheck ## ruff, yamllint, ansible-lint (production), shellcheck
	ruff check
	ruff format --check
	shellcheck $(SHELL_FILES)
	yamllint --strict .
	ansible-lint

types: setup ## mypy --strict on the core
	mypy

unit: setup need-haproxy ## Unit, property and golden tests; here a test that is skipped is one that failed
	L40S_NO_SKIPS=1 pytest

report-tests: setup need-chromium ## The report in headless Chromium; screenshots in build/report
	pytest tests/report

engine-tests: test-lab ## Planned arguments against the real vLLM's parser, parameter counts against transformers
	pytest tests/conformance

conformance: test-lab ## Planned arguments against vLLM 0.33.0's own code on a simulated sm89 platform (downloads its wheel)
	cd tests/conformance && python run_simulated_sm89.py

bench: setup ## What the core costs, and how good its answers are
	python tests/bench/bench_memory.py
	python tests/bench/bench_probe.py
	python tests/bench/bench_placement.py
	python tests/bench/bench_simulation.py
	python tests/bench/bench_planners.py
	python tests/bench/compare_serving.py

molecule: setup ## Every molecule scenario on the lab's nodes
	@scripts/molecule-all $(SCENARIOS)

soak: setup ## The long evidence, or one part of it: make soak PART=kills
	@python tests/soak/run.py $(PART)
