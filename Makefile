# Everything that is done with ppgen, from a machine with Python 3.11 or newer and make.
#
#   make run     the survey of generative models, with a report to look at
#   make test    the tests

PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
ARGS   ?=

BIN     := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --constraint constraints.txt
# One thread a process: the processes share the cores among them.
SINGLE  := OMP_NUM_THREADS=1
PYTEST  := $(SINGLE) $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test test-slow docs lint format bench clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/.runtime ## fit every family on the digits and write the report (ARGS="--budget 120" ...)
	$(BIN)/ppgen survey $(ARGS)

test: $(VENV)/.tests ## the tests (ARGS="-k mixture", JOBS=4)
	$(PYTEST) $(ARGS)

test-slow: $(VENV)/.tests ## the tests that take minutes
	$(PYTEST) -m slow $(ARGS)

docs: $(VENV)/.tests ## the documentation, tutorials executed, into docs/_build/html
	rm -rf docs/api/generated
	$(SINGLE) $(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html
	@echo "The documentation is at docs/_build/html/index.html"

lint: $(VENV)/.all ## style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.all ## write what lint would ask for
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.all ## speed against peers: a table, and build/benchmarks.json
	$(SINGLE) $(BIN)/python -m benchmarks --json build/benchmarks.json $(ARGS)

clean: ## remove the environment and everything built
	rm -rf $(VENV) build dist docs/_build docs/api/generated .pytest_cache .mypy_cache .ruff_cache .hypothesis .jupyter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp is an installed set of packages, made anew when the pins or the extras change.

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "ppgen needs Python 3.11 or newer, and '$(PYTHON)' is not: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "no virtual environment could be made: install the venv module of '$(PYTHON)'" >&2; exit 1; }
	@touch $@

# torch first: by far the largest, so that a broken download shows at once.
$(VENV)/.runtime: $(VENV)/.python constraints.txt pyproject.toml
	$(INSTALL) torch
	$(INSTALL) hatchling editables
	$(INSTALL) --no-build-isolation --editable .
	@touch $@

$(VENV)/.tests: $(VENV)/.runtime
	$(INSTALL) --no-build-isolation --editable '.[test,docs]'
	@touch $@

$(VENV)/.all: $(VENV)/.tests
	$(INSTALL) --no-build-isolation --editable '.[test,docs,bench,dev]'
	@touch $@
