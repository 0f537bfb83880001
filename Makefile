# Everything sets itself up: `make demo` or `make test` in a fresh clone needs Python 3.11 to 3.13 with
# venv, and nothing else (uv is used where it is on the PATH).
#
#   make demo       four videos by the bundled world, in out/demo
#   make test       the tests that CI runs           make test-all   the slow ones too
#   make lint       ruff                             make types      pyright
#   make install    .venv with the pinned packages   make install-dev   and the developers' tools
#   make format     rewrite code in house style      make tree       refresh the README's tree
#   make notebooks  make the .ipynb files anew       make lock       pin the newest allowed packages anew (needs uv)

SHELL := /bin/bash
.DEFAULT_GOAL := help

# The first Python in range; `make PYTHON=/path/to/python ...` chooses another.
IN_RANGE = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
PYTHON ?= $(firstword $(foreach p,python3 python3.11 python3.12 python3.13,$(shell $(p) -c '$(IN_RANGE)' 2>/dev/null && command -v $(p))))

BIN := .venv/bin
UV := $(shell command -v uv 2>/dev/null)
ifdef UV
  VENV = uv venv --quiet --allow-existing --python $(PYTHON) .venv
  PIP = uv pip install --quiet --python $(BIN)/python
else
  VENV = $(PYTHON) -m venv .venv
  PIP = $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check
endif
LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header pyproject.toml

# Tests and benchmarks start many processes, each of which would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

# A process for each core, to a limit; the tests of a file share what they train.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# The browser that the tests of `worldsim play` drive; `make test-all` installs Debian's where it may.
CHROMIUM := command -v chromium || command -v chromium-browser || command -v google-chrome

.PHONY: help demo test test-all lint types format install install-dev tree notebooks lock clean

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

demo: .venv/core.stamp
	$(BIN)/worldsim demo --out out/demo

# Programs of the tests run for moments, so that to compile them well costs more than it saves: most of the
# compiler's optimisations are off here, and on in test-all.
test: .venv/dev.stamp
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(PYTEST) -m "not slow"

test-all: .venv/dev.stamp
	@{ $(CHROMIUM); } >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
	  && apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } \
	  || echo "no Chromium here and no right to install it: the tests of the page in a browser are skipped"
	$(PYTEST)

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev.stamp
	$(BIN)/pyright

format: .venv/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tree: .venv/dev.stamp
	$(BIN)/python scripts/readme_tree.py --write

notebooks: .venv/dev.stamp
	$(BIN)/python scripts/notebooks.py

install: .venv/core.stamp
install-dev: .venv/dev.stamp

.venv/python.stamp:
	@test -n "$(PYTHON)" || { echo "worldsim needs Python 3.11, 3.12 or 3.13 on the PATH, or make PYTHON=/path/to/one"; exit 1; }
	$(VENV)
	@touch $@

# The project itself is installed last, by the pinned build tool and without a look at any registry.
.venv/core.stamp: .venv/python.stamp requirements.txt pyproject.toml
	$(PIP) --require-hashes -r requirements.txt
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

.venv/dev.stamp: .venv/core.stamp requirements-dev.txt
	$(PIP) --require-hashes -r requirements-dev.txt
	@touch $@

lock:
	$(LOCK) --extra dev -o requirements-dev.txt
	$(LOCK) --extra build -c requirements-dev.txt -o requirements.txt

clean:
	rm -rf .venv out build dist
