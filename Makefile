# Everything runs from .venv, which is made at first use and again when what it is made from changes.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

export DEEPLAMBDA_DATA_DIR ?= $(CURDIR)/.deeplambda
BIN := .venv/bin
READY := .venv/ready
QUICK := and not slow
UPGRADE := --upgrade
WITH_STACK := tests/e2e tests/faults tests/integration
# Both workers share one stack, which takes 4 GiB; with those that some tests start it is 10 GiB.
AT_ONCE := -n $(shell awk '/MemTotal/ {print ($$2 > 15000000) ? 2 : 0}' /proc/meminfo) --dist loadfile --no-loadscope-reorder

.PHONY: help demo story story-fraud up down status test test-all test-compose unit lint bench clean constraints

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## The whole loop on handwritten digits: from files on S3 to live predictions and SQL
	$(BIN)/python -m examples.demo

story: $(READY) ## The closed loop: drift, a new generation, wrong labels and the way back, on a stack of its own
	$(BIN)/python -m examples.story

story-fraud: $(READY) ## Weeks of card payments: a generation a week, beside a model that was never retrained; needs DEEPLAMBDA_TRANSACTIONS_DIR
	$(BIN)/python -m examples.fraud_story

up: $(READY) ## Start the local stack
	$(BIN)/deeplambda up

down: $(READY) ## Stop it
	$(BIN)/deeplambda down

status: $(READY) ## How each part is
	$(BIN)/deeplambda status

test: $(READY) ## All checks: lint, types, and the tests, against a stack of their own
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint unit QUICK=
	$(BIN)/python -m pytest $(WITH_STACK) -m 'not long' $(AT_ONCE) --durations=20

test-all: lint ## The same, with the tests that are long by nature
	$(MAKE) --no-print-directory unit QUICK=
	$(BIN)/python -m pytest tests/unit -m long
	$(BIN)/python -m pytest $(WITH_STACK) --durations=20

test-compose: $(READY) ## The stack of docker compose; skipped, with the reason, where there is no engine
	$(BIN)/python -m pytest tests/compose -s

unit: $(READY) ## The quick tests that need no service
	$(BIN)/python -m pytest tests/unit tests/contract -m 'not long $(QUICK)' -q -n $$(($$(nproc) + 1)) --dist loadfile --no-loadscope-reorder

lint: $(READY) ## ruff, mypy and the rules of who may import whom
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY) ## Each benchmark as a ratio against a baseline that runs beside it
	$(BIN)/python -m benchmarks

clean: ## Stop the stack and remove .venv and the data
	if [ -x $(BIN)/deeplambda ]; then $(BIN)/deeplambda down; fi
	rm -rf .venv .deeplambda .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	@if [ -d '$(DEEPLAMBDA_DATA_DIR)' ]; then echo 'The data in $(DEEPLAMBDA_DATA_DIR) is left: remove it by hand.'; fi

constraints: $(READY) ## Pin the newest versions that pyproject.toml allows, with their hashes; UPGRADE= adds what is new alone
	$(BIN)/uv pip compile pyproject.toml --extra all --extra dev --extra peers --universal --python-version 3.11 $(UPGRADE) \
		--generate-hashes --no-emit-index-url --no-header --no-annotate -o constraints.txt

$(READY): pyproject.toml constraints.txt requirements-uv.txt
	@PYTHON='$(PYTHON)' scripts/make-venv
