# The targets of this project; `make` alone lists them.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
XI := $(BIN)/xi-harness

.DEFAULT_GOAL := help
.PHONY: help setup run test test-guest twins unit lint guests bench mutations clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

setup: ## install what is missing: QEMU, gcc, gdb from the distribution, a virtual environment
	@scripts/setup

guests: setup ## build the firmware and the test guests
	@$(MAKE) --no-print-directory --silent -C guest-kernels PYTHON=$(abspath $(BIN)/python)

run: guests ## the main job: boot every guest once and check it against the MMU, observed and then live
	@$(XI) run --tour $(ARGS)
	@$(XI) run --tour --mode live $(ARGS)

lint: setup ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

unit: guests ## pytest: the engine, the reports, the plugin, a few whole runs
ifdef ARGS
	@$(BIN)/pytest -q $(ARGS)
else
	@$(BIN)/pytest -q -n 2 --dist worksteal -m "not two_cores"
	@$(BIN)/pytest -q -m two_cores
endif

test-guest: guests ## every guest in every paging mode, observed and live; in one of them live against native
	@$(XI) run --all $(ARGS)
	@$(XI) run --all --mode live $(ARGS)
	@$(XI) run --tour $(HARD) $(ARGS)

# The smallest pool in which every guest gets on, and frames that move, go and come back.
HARD := --mode both --stress --pool 33
twins: guests ## every guest in every paging mode, live under stress against native (some three minutes)
	@$(XI) run --all $(HARD) $(ARGS)

test: ## lint, unit and test-guest
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory unit
	@$(MAKE) --no-print-directory test-guest

mutations: guests ## break the engine and the interception in named ways: what catches each?
	@$(BIN)/python -m tests.mutations

bench: guests ## measure the harness itself
	@$(XI) bench $(ARGS)

clean: ## remove what was built; the virtual environment stays
	@$(MAKE) --no-print-directory -C guest-kernels PYTHON="$(firstword $(wildcard $(abspath $(BIN)/python)) python3)" clean
	@rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
