# make demo | quick | test | test-all | test-slurm | test-versions | lint | types | docs | pictures | wheel | bench | bench-setup | clean
# Every target creates the environment if it is missing and updates it if pyproject.toml or the C extension has changed.

SYSTEM_PYTHON ?= python3
VENV := .venv
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.PHONY: help demo quick test test-all test-slurm test-versions lint types docs pictures wheel bench bench-setup clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' Makefile | expand -t 16

$(INSTALLED): pyproject.toml setup.py setup.sh $(wildcard pretrain/data/images/native/*)
	@./setup.sh $(SYSTEM_PYTHON) $(VENV)
	@touch $@

demo: $(INSTALLED) ## pack, pretrain, kill, resume and fine-tune on embedded real images
	$(PYTHON) -m pipelines demo

quick: $(INSTALLED) ## one case of each law, in about a minute: after every edit
	$(PYTHON) -m pytest -m "quick and not slow" --numprocesses auto --dist loadfile

test: $(INSTALLED) ## the suite without slow tests, on all cores: before every commit
	$(PYTHON) -m pytest -m "not slow" --numprocesses auto --dist loadfile

test-all: test ## the complete suite; slow tests run one after the other, since they measure or start a cluster
	tests/slurm/with_slurm.sh $(PYTHON) -m pytest -m slow

test-slurm: $(INSTALLED) ## the job scripts on a real Slurm, installed for it where that is allowed (root, apt-get)
	tests/slurm/with_slurm.sh $(PYTHON) -m pytest -m slow tests/slurm

test-versions: $(INSTALLED) ## all numerics with the lowest and the highest allowed version of every dependency (12 GB)
	tests/versions.sh lowest
	tests/versions.sh highest

lint: $(INSTALLED) ## format and rules, without changing anything
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .

types: $(INSTALLED) ## static types
	$(PYTHON) -m pyright

# The variable leaves out the theme's note about its successor.
docs: $(INSTALLED) ## the documentation as a site in site/, without network; a dead link or anchor fails
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict
	@echo "site/index.html; with search: $(PYTHON) -m http.server --directory site --bind 127.0.0.1"

pictures: $(INSTALLED) ## docs/pictures from the demo's runs (make demo), with a headless Chromium
	$(PYTHON) -m tests.pictures

wheel: $(INSTALLED) ## the complete product as dist/*.whl, to install without a checkout
	rm -rf build
	$(PYTHON) -m pip wheel --disable-pip-version-check --quiet --no-deps --no-build-isolation --wheel-dir dist .
	rm -rf build

BENCH ?=
bench: $(INSTALLED) ## every benchmark, and docs/benchmarks.md from their results; BENCH="--only engine" or --photos DIR
	$(PYTHON) -m benchmarks $(BENCH)

bench-setup: $(INSTALLED) ## environments under .bench/ for the loaders and trainers that the benchmarks compare with
	$(PYTHON) -m benchmarks.loaders.setup

clean: ## remove caches and builds; data, runs and the environment stay
	rm -rf build dist site .versions *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
