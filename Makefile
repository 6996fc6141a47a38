# Each target works as the first command in a fresh clone: it makes its environment in .venv, with conda or mamba where there
# is one and with Python's own venv where not.

BUDGET ?= 60
SCALE ?= small
PYTHON ?= python3
CONDA := $(firstword $(shell command -v mamba micromamba conda 2>/dev/null))
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help install reproduce test record notebooks check book slides clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: .venv/installed  ## make the environment

.venv/installed: pyproject.toml constraints.txt environment.yml
ifneq ($(CONDA),)
	@echo "==> making the environment in .venv with $(notdir $(CONDA)) (some minutes, once)"
	$(CONDA) env create --quiet --yes --prefix .venv --file environment.yml
else
	@echo "==> making the environment in .venv with $(shell $(PYTHON) --version) (some minutes, once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed; say which one with PYTHON=python3.12")'
	$(PYTHON) -m venv .venv || { echo "$(PYTHON) has no working venv: install python3-venv, or say another one with PYTHON=python3.12"; exit 1; }
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
endif
	@touch $@

reproduce: install  ## run every notebook at smoke scale, or at small scale where COMPANION_DATA is set
	@echo "==> executing the notebooks at $(if $(COMPANION_DATA),small,smoke) scale; what is done is skipped"
	$(BIN)/python -m lib.batch --scale $(if $(COMPANION_DATA),small,smoke)

test: install  ## run the tests and validate the notebooks
	@echo "==> tests, then the notebooks against their committed outputs"
	$(BIN)/python -m pytest tests --numprocesses 2 --dist loadscope
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --nbval --nbval-current-env notebooks --numprocesses 2 --dist loadscope

record: install  ## train, measure and record missing evidence for BUDGET minutes at SCALE
	@echo "==> recording evidence at $(SCALE) scale for at most $(BUDGET) minutes"
	$(BIN)/python -m lib.evidence $(SCALE) --budget $(BUDGET); status=$$?; [ $$status -eq 3 ] || exit $$status

notebooks: install  ## make the notebooks from notebooks/percent: sync, execute, strip
	$(BIN)/python -m course.chapters --write

check: install  ## check style and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

.venv/book: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[book]'
	@touch $@

book: .venv/book slides  ## build the book into book/_build/html, to be read without a network
	$(BIN)/sphinx-build -q book book/_build/html

slides: .venv/book  ## make a deck of slides a chapter, in book/_build/html/slides
	$(BIN)/python book/slides.py book/_build/html/slides

clean:  ## delete the environment; runs and records stay
	rm -rf .venv book/_build book/made book/notebooks book/data_cards book/docs
