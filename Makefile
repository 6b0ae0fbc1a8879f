# The same targets for people and for CI. `make help` lists them.
BIN := .venv/bin
INSTALLED := .venv/.installed
UV := $(shell command -v uv 2>/dev/null || echo $(BIN)/uv)
SHELL := /bin/bash
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Container images like to set it. Then every process of a pipeline compiles torch anew, which takes longer than loading it.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo retrain test test-e2e coverage test-kills test-team faults mutants check bench lock

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

install: $(INSTALLED)  ## the locked packages and this one, in .venv

demo: $(INSTALLED)  ## the whole pipeline on synthetic street scenes
	@pspnet synthesize data/raw --images 600 --labelled 200 --seed 0
	@pspnet retrain

retrain: $(INSTALLED)  ## what changed on the data in data/raw, up to the champion
	@pspnet retrain

TESTS = python -m pytest -n 2 --dist worksteal --durations 15

test: $(INSTALLED)  ## what needs no process of its own: after each change
	$(TESTS) -m "not e2e and not kills and not team"

test-e2e: $(INSTALLED)  ## real commands, DVC, servers, PostgreSQL
	$(TESTS) -m e2e

coverage: $(INSTALLED)  ## both, and which lines they run; it takes half as long again
	$(TESTS) -m "not kills and not team" --cov --cov-report=term

test-kills: $(INSTALLED)  ## SIGKILL at random moments; the results must be the same
	$(TESTS) tests/e2e tests/flows tests/registry tests/stages tests/training -m kills --timeout 1500

test-team: $(INSTALLED)  ## a server, workers and MLflow on this machine; runs disturbed in every way
	python -m pytest tests/team -n 2 --dist worksteal -m team --durations 0

faults: $(INSTALLED)  ## small wrong changes to copies of the code: does a test notice each?
	python -m tests.faults

mutants: $(INSTALLED)  ## the same of random changes, whose share counts
	python -m tests.faults --mutants

check: $(INSTALLED)  ## style, types, layers
	ruff check .
	ruff format --check .
	mypy
	lint-imports --no-logo

bench: $(INSTALLED)  ## the demo timed stage by stage, in a clone
	python benchmarks/pipeline.py

lock: $(INSTALLED)  ## resolve the ranges of pyproject.toml into requirements.lock again
	$(UV) pip compile --quiet --universal --generate-hashes --python-version 3.11 --extra dev pyproject.toml --output-file requirements.lock

$(INSTALLED): requirements.lock pyproject.toml
	@set -e; started=$$(date +%s); \
	if command -v uv >/dev/null 2>&1; then test -x $(BIN)/python || uv venv --quiet --seed .venv; \
	else python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'; \
	test -x $(BIN)/uv || { python3 -m venv .venv && \
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --requirement <(sed -n '/^uv==/,/# via/p' requirements.lock); }; fi; \
	$(UV) pip install --quiet --python $(BIN)/python --require-hashes --requirement requirements.lock; \
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .; \
	$(BIN)/python -m pspnet.offline; \
	touch $@; echo "Installed in $$(( $$(date +%s) - started )) s (once)."
