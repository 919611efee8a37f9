# Two commands: `make book` prints the book, `make test` checks everything that CI checks.
# Needs Python 3.11-3.13, git and make; everything else goes into .venv.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
TORCH := 2.13.0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# One thread a process: the jobs run side by side, and results do not depend on the core count.
export OMP_NUM_THREADS ?= 1

.PHONY: help book test env lint unit chapters site browser lab bench lock clean

help:
	@echo "make book     environment, all chapters at small scale, the site; prints its address"
	@echo "make test     everything CI runs: lint, check, unit tests, chapters, site, browser"
	@echo "make lab      JupyterLab on the chapters"
	@echo "make bench    the library beside its peers, as ratios"
	@echo "make clean    removes _build; the environment stays"

.DEFAULT:
	@echo "make: there is no target '$@' here; 'make help' lists what there is" >&2; exit 2

book: env
	@$(BIN)/python -m book run
	@$(BIN)/python -m book build
	@echo "The book is at file://$(CURDIR)/_build/html/index.html"
	@echo "or, served with search:  $(BIN)/python -m book serve"

# ---- the environment: made once, again when the lock or the metadata changes

env: .venv/.stamp

.venv/.stamp: requirements.txt pyproject.toml
	@if [ -z "$(PYTHON)" ]; then \
		echo "No Python 3.11-3.13 found. Install one, or name it: make book PYTHON=/path/to/python3.12" >&2; exit 2; fi
	@echo "[environment] .venv with $(PYTHON): about 3 minutes and 2 GB the first time"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@# PyTorch first and by its version: a looser wish would bring gigabytes nobody asked for.
	@echo "[environment] PyTorch $(TORCH) ..."
	@$(BIN)/python -m pip install --quiet "torch==$(TORCH)"
	@echo "[environment] everything else in requirements.txt ..."
	@$(BIN)/python -m pip install --quiet -r requirements.txt
	@$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

# ---- everything CI runs, one stage after the other; each says how long it took

test: env
	@$(BIN)/python tests/stages.py lint unit chapters site browser

lint unit chapters site browser: env
	@$(BIN)/python tests/stages.py $@

lab: env
	@$(BIN)/python -m book lab

bench: env
	@$(BIN)/python -m book bench

# ---- the exact lock, compiled from pyproject.toml (needs `pip install uv`)
# NVIDIA's packages stay out: PyTorch's own metadata brings them where a GPU build is installed.

lock:
	@uv pip compile --quiet --universal --python-version 3.11 --extra book --extra peers --no-header \
		--constraint <(echo torch==$(TORCH)) pyproject.toml --no-annotate \
		| grep -v -E '^(nvidia|cuda)-' > requirements.lock
	@(echo "# The exact environment of the book, compiled from pyproject.toml by 'make lock'."; \
		cat requirements.lock) > requirements.txt && rm requirements.lock

clean:
	rm -rf _build

SHELL := /bin/bash
