# Two commands: `make demo` and `make test`. Both install what they need into .venv, once; so does `make test-slow`.

PYTHON ?= python3
PYTEST_ARGS ?=
VENV := $(CURDIR)/.venv
# DVC's stages call `pipeline` and `python` by name; `override` so that a PATH given to make keeps this in front
override PATH := $(VENV)/bin:$(PATH)
export PATH
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test test-avx2 test-slow lint format clean

help:
	@echo "make demo       draw a small corpus, run all seven stages, print the CER (7 minutes on two cores)"
	@echo "make test       lint, type check and run all tests"
	@echo "make test-avx2  run the tests that compute with torch as on a processor without AVX-512"
	@echo "make test-slow  tests that need more: a Ray cluster on this machine (one minute)"
	@echo "make lint       ruff, mypy and import-linter alone"
	@echo "make format     let ruff write the layout"
	@echo "make clean      remove what the stages made, caches and checkpoints included; .venv stays"
	@echo "PYTHON=python3.12 chooses the interpreter of .venv"

# The stamps stand inside .venv: removing .venv removes them. Installing for development serves the demo too.
.venv/.installed: pyproject.toml constraints.txt | .venv/bin/pip
	.venv/bin/pip install --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt | .venv/bin/pip
	.venv/bin/pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch .venv/.installed $@

.venv/.installed-slow: .venv/.installed-dev
	.venv/bin/pip install --disable-pip-version-check -c constraints.txt -e '.[dev,ray]'
	@touch $@

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	  "Python 3.11 or later is needed, $(PYTHON) is " + sys.version.split()[0] + "; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

demo: .venv/.installed
	pipeline doctor
	pipeline demo
	dvc repro
	@pipeline show

test: lint
	pytest -m 'not slow' $(PYTEST_ARGS)

# Test files that import torch, but for those about processes that are stopped, files and reports: they compute nothing new.
# oneDNN reads the first variable and torch's own kernels the second, once, at their start.
NOT_COMPUTING := resume|training_ends|scoring|shard_cache|stream|unfinished|metric_logger|restart|run_folder|ranks
test-avx2: .venv/.installed-dev
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 pytest -m 'not slow' $(PYTEST_ARGS) \
	  $$(grep -lE '^ *(import|from) torch' $$(find tests -name 'test_*.py') | grep -vE '$(NOT_COMPUTING)')

test-slow: .venv/.installed-slow
	pytest -m slow $(PYTEST_ARGS)

lint: .venv/.installed-dev
	ruff check .
	ruff format --check .
	mypy
	lint-imports

format: .venv/.installed-dev
	ruff check --fix .
	ruff format .

clean:
	rm -rf data stats checkpoints logs runs report .cache .dvc/tmp .dvc/cache
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
