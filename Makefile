# The same targets for people and for CI. `make help` lists them.
BIN := .venv/bin
UV := $(shell command -v uv 2>/dev/null || echo $(BIN)/uv)
INSTALLED := .venv/.installed
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help install lock
help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

install: $(INSTALLED)  ## .venv with the locked packages and this one

$(INSTALLED): requirements.lock pyproject.toml
	@started=$$(date +%s); set -e; \
	if command -v uv >/dev/null 2>&1; then test -x $(BIN)/python || uv venv --quiet .venv; \
	else test -x $(BIN)/uv || { python3 -m venv .venv && $(BIN)/python -m pip install --quiet uv; }; fi; \
	$(UV) pip install --quiet --python $(BIN)/python --requirements requirements.lock; \
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .; \
	touch $@; echo "Installed in $$(( $$(date +%s) - started )) s (the first time only)."

lock: $(BIN)/python  ## resolve pyproject.toml into requirements.lock again
	$(UV) pip compile --quiet --universal --python-version 3.11 --extra dev pyproject.toml --output-file requirements.lock
