# `make demo`, `make test` and `make test-slow` install what they need into .venv once.

PYTHON ?= python3
PYTEST_ARGS ?=
VENV := $(CURDIR)/.venv
# DVC's stages call `pipeline` and `python` by name; `override` so that .venv/bin stays first even if make is given a PATH
override PATH := $(VENV)/bin:$(PATH)
export PATH
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test test-avx2 test-slow lint format clean

help:
	@echo "make demo       draw a small corpus, run all seven stages and print the CER (7 minutes on two cores)"
	@echo "make test       lint, type check and run all tests"
	@echo "make test-avx2  run the tests that compute with torch as on a CPU without AVX-512"
	@echo "make test-slow  run the tests that need extras: a Ray cluster on this machine, trackers (2 minutes)"
	@echo "make lint       run only ruff, mypy and import-linter"
	@echo "make format     format the code with ruff"
	@echo "make clean      remove all outputs of the stages, caches and checkpoints; keep .venv"
	@echo "PYTHON=python3.12 chooses the interpreter of .venv"

# The stamp files are in .venv, so removing .venv removes them. The development install also counts for the demo.
.venv/.installed: pyproject.toml constraints.txt | .venv/bin/pip
	.venv/bin/pip install --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt | .venv/bin/pip
	.venv/bin/pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch .venv/.installed $@

.venv/.installed-slow: .venv/.installed-dev
	.venv/bin/pip install --disable-pip-version-check -c constraints.txt -e '.[dev,ray,wandb,mlflow]'
	@touch $@

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; found = sys.version.split()[0]; is_new = sys.version_info >= (3, 11); \
	  print(f"Python {found} ($(PYTHON)) for .venv; 3.11 to 3.14 work, 3.11 is tested most" if is_new else ""); \
	  sys.exit(None if is_new else f"Python 3.11 or later is needed, $(PYTHON) is {found}; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

demo: .venv/.installed
	pipeline doctor
	pipeline demo
	dvc repro
	@pipeline show

test: lint
	pytest -m 'not slow' $(PYTEST_ARGS)

# Test files that import torch, except those about stopped processes, files and reports: they compute nothing else.
# oneDNN reads the first variable and torch's own kernels the second, once, at their start.
NOT_COMPUTING := resume|training_ends|scoring|shard_cache|stream|unfinished|metric_logger|restart|run_folder|ranks|planned|clip_pipeline|trackers
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
