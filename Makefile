# People and CI use the same targets. `make help` lists them.
BIN := .venv/bin
INSTALLED := .venv/.installed
UV := $(shell command -v uv 2>/dev/null || echo $(BIN)/uv)
SHELL := /bin/bash
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Some container images set this variable. Every process then compiles torch's modules again, which takes longer than
# loading them.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo retrain test test-e2e coverage test-kills test-team faults mutants check bench lock

help:  ## show this list of targets
	@grep -hE '^[a-z0-9-]+:.*##' Makefile | sed -E 's/^([a-z0-9-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

install: $(INSTALLED)  ## install the locked packages and this one into .venv

demo: $(INSTALLED)  ## run the whole pipeline on synthetic street scenes
	@pspnet synthesize data/raw --images 600 --labeled 200 --seed 0
	@pspnet retrain

retrain: $(INSTALLED)  ## run every step that has changed, from the data in data/raw to the champion
	@pspnet retrain

TESTS = python -m pytest -n 2 --dist worksteal --durations 15

test: $(INSTALLED)  ## run the tests that start no process; run this after each change
	$(TESTS) -m "not e2e and not kills and not team"

test-e2e: $(INSTALLED)  ## test with real commands, DVC, servers and PostgreSQL
	$(TESTS) -m e2e

coverage: $(INSTALLED)  ## run test and test-e2e and show which lines they cover; takes 50% longer
	$(TESTS) -m "not kills and not team" --cov --cov-report=term

test-kills: $(INSTALLED)  ## kill processes at random moments; the results must be the same
	$(TESTS) tests/e2e tests/flows tests/prediction tests/registry tests/study tests/training -m kills --timeout 1500

test-team: $(INSTALLED)  ## kill and freeze servers and workers on this machine
	python -m pytest tests/team -n 2 --dist worksteal -m team --durations 0

faults: $(INSTALLED)  ## make small wrong changes to copies of the code and check that a test notices each change
	python -m tests.faults

mutants: $(INSTALLED)  ## do the same with random changes, and report the share of changes that the tests notice
	python -m tests.faults --mutants

check: $(INSTALLED)  ## check style, types and the layers of imports
	ruff check .
	ruff format --check .
	mypy
	lint-imports --no-logo

bench: $(INSTALLED)  ## time the demo stage by stage, in a clone
	python benchmarks/pipeline.py

lock: $(INSTALLED)  ## update requirements.lock from the version ranges in pyproject.toml
	$(UV) pip compile --quiet --universal --generate-hashes --python-version 3.11 --extra dev pyproject.toml --output-file requirements.lock

$(INSTALLED): requirements.lock pyproject.toml
	@set -e; started=$$(date +%s); \
	if command -v uv >/dev/null 2>&1; then test -x $(BIN)/python || uv venv --quiet --seed .venv; \
	else python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'; \
	test -x $(BIN)/uv || { python3 -m venv .venv && \
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --requirement <(sed -n '/^uv==/,/# via/p' requirements.lock); }; fi; \
	$(UV) pip install --quiet --python $(BIN)/python --require-hashes --requirement requirements.lock; \
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .; \
	$(BIN)/python -m pspnet.machine.offline; \
	touch $@; echo "Installed in $$(( $$(date +%s) - started )) s (once)."
