# No virtual environment to activate: every target makes .venv when it is missing or out of date.
#   make demo    set up and run the main job on text that Python itself carries
#   make test    set up and run the tests
#   make engines fetch other Beam engines (Go, Java) and run the same jobs on them
#   make cloud-rehearsal    run the Dataflow job as it would be submitted, without a cloud

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The first interpreter that the package supports; `make PYTHON=/path/to/python3.11` chooses another.
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)
BENCH_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test engines lint format templates image-check bench cloud-rehearsal clean

help:
	@sed -n 's/^#   //p' $(MAKEFILE_LIST)
	@echo 'make lint    style;  make format: mend it;  make bench: timings;  make clean: remove what these made'
	@echo 'make templates    the JSON files of the Dataflow template;  make image-check: the Dockerfile and its steps'

setup: $(STAMP)

$(STAMP): setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo 'beam-prep needs Python 3.10, 3.11 or 3.12 with venv: install one, or make PYTHON=/path/to/it' >&2; exit 2; }
	@echo 'Setting up $(VENV) with $(PYTHON) and the versions in constraints.txt (a minute or two) ...'
	@$(PYTHON) -m venv $(VENV)
	@# The pip that an older Python brings takes minutes to choose among versions.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

demo: $(STAMP)
	$(BIN)/beam-prep demo

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

engines: $(STAMP)
	$(BIN)/python tests/engine_artefacts.py
	$(BIN)/python -m pytest -m engines -rs tests/test_engines.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

templates: $(STAMP)
	$(BIN)/python -m templates.generate

image-check: $(STAMP)
	$(BIN)/hadolint Dockerfile
	$(BIN)/python -m templates.check_image

cloud-rehearsal: $(STAMP)
	$(BIN)/python tests/cloud_rehearsal.py

$(VENV)/.bench: $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $@

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/throughput.py $(BENCH_ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis benchmarks/data
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
