# make all CONFIG=my.toml    photos and labels -> pseudo-masks, scores, pictures
# make test                  the tests, from set-up on
PYTHON ?= python3
VENV   ?= .venv
CONFIG ?=
WORK   ?=
RECIPE ?=
EVAL   ?= yes

BIN  := $(VENV)/bin
SSR  := $(BIN)/ssr
ARGS  = --config $(CONFIG) $(if $(WORK),--work $(WORK)) $(if $(RECIPE),--recipe $(RECIPE))
# exit code 3: done but for the bad images that --max-failures allows
step  = $(SSR) $(1) $(ARGS) || [ $$? -eq 3 ]

.PHONY: help setup all test lint check format bench clean

help:
	@sed -n '1,2s/^# //p' Makefile
	@echo 'make setup | check | lint | format | bench CONFIG=my.toml | clean'

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 12) else "ssr needs Python 3.11 or 3.12 (pydensecrf2 does not build on newer): make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install -e '.[all,dev]'
	touch $@

all: setup
	@[ -n '$(CONFIG)' ] || { echo 'make all needs CONFIG=my.toml; README.md shows one' >&2; exit 2; }
	$(call step,doctor)
	$(call step,superpixels)
	$(call step,cams)
	$(call step,refine)
	[ '$(EVAL)' != yes ] || { $(call step,eval cams) && { $(call step,eval masks); }; }
	$(call step,show)

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell pipelines ssr_cli tests docs benchmarks README.md CHANGELOG.md CONTRIBUTING.md

check: lint test

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	@[ -n '$(CONFIG)' ] || { echo 'make bench needs CONFIG=my.toml' >&2; exit 2; }
	$(BIN)/python benchmarks/speed.py --config $(CONFIG)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
