# Two commands: `make demo` and `make test`.  They need python3 (3.11 or newer)
# with venv, and make what is missing.  PYTHON and VENV may be overridden.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: demo install test test-all lint format clean distclean

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := MPLBACKEND=Agg $(BIN)/python -m pytest -n 2
STATED := setup.py pyproject.toml fedjax_het/version.py

demo: $(VENV)/.installed
	@$(BIN)/fedjax-het demo $(ARGS)

install: $(VENV)/.installed

test: $(VENV)/.installed-test
	@$(PYTEST) -m "not slow" $(ARGS)

test-all: $(VENV)/.installed-test
	@$(PYTEST) $(ARGS)

lint: $(VENV)/.installed-test
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

format: $(VENV)/.installed-test
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -print | xargs -r rm -rf

distclean: clean
	@[ ! -e $(VENV)/pyvenv.cfg ] || rm -rf $(VENV)

# pip's own output is hundreds of lines; of it the large downloads are shown
define pip_install
@echo "installing $(1) into $(VENV) (minutes, the first time) ..."
@$(BIN)/python -m pip install --disable-pip-version-check -e '$(1)' | sed -unE \
  -e 's/^ *(Downloading|Using cached) ([^-]*-[^-]*)-.* \(([0-9.]+ MB)\).*/  \2  \3/p' \
  -e 's/^Installing collected.*/  unpacking/p'
@touch $@
endef

# Lowering for CUDA without a GPU needs the launcher in JAX's CUDA plugin (8 MB),
# and none of the gigabytes that it depends on.  Its tests skip without it.
define cuda_launcher
version=$$($(BIN)/python -c 'import jaxlib; print(jaxlib.__version__)'); \
$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps \
  "jax-cuda13-plugin==$$version" 2> /dev/null || \
  echo "no jax-cuda13-plugin $$version: tests of the CUDA lowering will be skipped"
endef

$(VENV)/.installed: $(STATED) | $(BIN)/pip
	$(call pip_install,.)

$(VENV)/.installed-test: $(STATED) | $(BIN)/pip
	$(call pip_install,.[test])
	@$(cuda_launcher)
	@touch $(VENV)/.installed

$(BIN)/pip:
	@command -v $(PYTHON) > /dev/null || { \
	  echo "error: no $(PYTHON): apt install python3 python3-venv" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $$($(PYTHON) -V) is too old, 3.11 is needed:" \
	    "make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2> /dev/null || { \
	  echo "error: $(PYTHON) has no venv: apt install python3-venv make" >&2; \
	  exit 2; }
	@echo "making $(VENV) with $$($(PYTHON) -V) ..."
	@$(PYTHON) -m venv $(VENV)
