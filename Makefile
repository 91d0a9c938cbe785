# Every target makes its own .venv with the standard library's venv and pip; nothing else is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test test-crash test-replication test-sim mutants campaign lint format docs bench tables clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(READY)

demo: $(READY)  ## an agent on bare S3 and written behind, side by side; then an outage, then a crash in mid-turn
	@$(BIN)/python -m locus_tiered.demo

test: $(READY)  ## the whole suite, against real servers that it starts itself
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-crash: $(READY)  ## kill -9 of real processes, 300 times: LOCUS_TIERED_KILLS=1000 LOCUS_TIERED_SEED=2 make test-crash
	@$(BIN)/python -m tests.crash.kills

test-replication: $(READY)  ## three real replicas under load, each killed, stopped, cut off and wiped: LOCUS_TIERED_SECONDS=60
	@$(BIN)/python -m tests.replication_real.prove

test-sim: $(READY)  ## replication under every fault in virtual time, one story per seed: LOCUS_TIERED_SEEDS=1000 make test-sim
	@LOCUS_TIERED_SEEDS=$${LOCUS_TIERED_SEEDS:-300} $(BIN)/python -m pytest -q tests/replication/test_simulation.py -n 2 --timeout 3600

mutants: $(READY)  ## replication broken on purpose one way at a time, and which test notices which
	@$(BIN)/python -m tests.replication.mutants

lint: $(READY)  ## ruff and mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(READY)  ## let ruff put the code in shape
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

tables: $(READY)  ## write the generated tables of the docs anew
	@$(BIN)/python -m docs.generate

docs: $(READY)  ## build the site into site/, warnings are errors
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

campaign: $(READY)  ## the state machine for longer: LOCUS_TIERED_EXAMPLES=500 make campaign
	@LOCUS_TIERED_EXAMPLES=$${LOCUS_TIERED_EXAMPLES:-300} $(BIN)/python -m pytest -q tests/laws/test_state_machine.py --timeout 3600 -n 2

bench: $(READY)  ## measure the budgets against the SDK's own checkpointers; writes bench.json
	@$(BIN)/python -m locus_tiered.bench --json bench.json

clean:  ## remove what the other targets made
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .hypothesis bench.json
