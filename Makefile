# `make demo` and `make test` need nothing set up before: they make .venv, with PyTorch and
# Detectron2 in it, on their first call.

PYTHON ?= python3
# Another Detectron2: a pip requirement, a wheel or the path of a checkout.
# Empty: the patched v0.6 of dev/install_detectron2.py.
DETECTRON2 ?=
# What pip may install; without a line of a package, its newest.
CONSTRAINTS ?= constraints.txt
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# Written last: a .venv without it is a half-made one.
STAMP := $(VENV)/complete
# The DETECTRON2 that .venv was made with.
CHOICE := $(VENV)/detectron2.txt
SOURCES := $(CONSTRAINTS) setup.cfg pyproject.toml $(wildcard dev/*detectron2*.py)

D2_SOURCE := $(if $(DETECTRON2),'$(DETECTRON2)')

# More threads than this gain nothing on the small tensors of the demo and the tests.
export OMP_NUM_THREADS ?= 2
# Without it two threads are slower than one while something else is running.
export OMP_WAIT_POLICY ?= passive
# In the order in which they are run; each has its benchmarks/bench_X.py and results/bench_X.csv.
BENCHMARKS := loss rpn roi iteration counting
# Every pip call below, those of dev/install_detectron2.py too.
PIP := PIP_CONSTRAINT=$(CONSTRAINTS) PIP_DISABLE_PIP_VERSION_CHECK=1

CHECK_PYTHON := $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
  2>/dev/null || { echo '$(PYTHON) is not Python 3.11, 3.12 or 3.13: say make PYTHON=python3.13' >&2; exit 1; }

# A finished .venv with the same choice is kept and updated, any other one is made anew.
ifneq ($(shell test -f $(STAMP) && cat $(CHOICE) 2>/dev/null || echo none),choice: $(DETECTRON2))
REMAKE := remake
endif

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-long bench lint format clean remake

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 24
	@echo
	@echo 'ARGS="..." is handed on by demo, test, test-long and bench; PYTHON=... makes .venv with another Python.'
	@echo 'DETECTRON2=... takes another Detectron2: a pip requirement, a wheel or a checkout.'

venv: $(STAMP)  ## set up .venv: PyTorch, Detectron2 and this package

demo: $(STAMP)  ## train and evaluate a small detector on made-up images
	$(BIN)/python train_net.py --config-file configs/demo/retinanet.py $(ARGS)

# Two processes of one thread each take half the time of one with two.
test: OMP_NUM_THREADS = 1
test: $(STAMP)  ## run the tests
	$(BIN)/python -m pytest -n 2 $(ARGS)

RELIABILITY := results/reliability.json
test-long: OMP_NUM_THREADS = 1
test-long: $(STAMP)  ## run the tests that take long, for docs/reliability.md
	$(BIN)/python -m pytest -n 2 -m long --figures=$(RELIABILITY) $(ARGS)
	PYTHONPATH=tests $(BIN)/python -m helpers.bad_data --output $(RELIABILITY)
	$(BIN)/python dev/render_tables.py

bench: $(STAMP)  ## measure speed and memory, for docs/performance.md
	set -e; for name in $(BENCHMARKS); do \
	  $(BIN)/python benchmarks/bench_$$name.py --output results/bench_$$name.csv $(ARGS); \
	done
	$(BIN)/python dev/render_tables.py

lint: $(STAMP)  ## check style, format, docstrings and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## put style and format right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv and what else is built
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache projects/SamplingFree/*.egg-info

$(STAMP): $(SOURCES) $(REMAKE)
	$(if $(REMAKE),@$(CHECK_PYTHON))
	@$(PYTHON) dev/install_detectron2.py --check $(D2_SOURCE) >/dev/null
	@echo 'Setting up $(VENV): about 5 GB, a few minutes.'
	$(if $(REMAKE),rm -rf $(VENV) && $(PYTHON) -m venv $(VENV))
	$(PIP) $(BIN)/python -m pip install --quiet pip setuptools
	$(PIP) $(BIN)/pip install --quiet --no-build-isolation torch torchvision --editable '.[dev]'
	$(PIP) $(BIN)/python dev/install_detectron2.py --force $(D2_SOURCE)
	@echo 'choice: $(DETECTRON2)' > $(CHOICE)
	@touch $@
