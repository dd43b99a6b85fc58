# Everything from nothing: needs Python 3.11 or newer and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint docs benchmarks clean

demo: .venv/.base
	mkdir -p demo
	$(BIN)/rismusic simulate -o demo/recording.h5 --scenes 24 --sources 3 --snr-db 10 --overwrite
	$(BIN)/rismusic check demo/recording.h5 --plot demo/scene.png --overwrite
	$(BIN)/rismusic bound --plot demo/bound.png --overwrite

test: .venv/.dev
	$(BIN)/pytest

lint: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: .venv/.dev
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

benchmarks: .venv/.dev
	$(BIN)/python benchmarks/simulation.py
	$(BIN)/python benchmarks/bounds.py

.venv/.torch: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv .venv
	$(PIP) torch
	touch $@

.venv/.base: .venv/.torch pyproject.toml
	$(PIP) -e '.[report]'
	touch $@

.venv/.dev: .venv/.base
	$(PIP) -e '.[report,dev,docs]'
	touch $@

clean:
	rm -rf .venv demo docs/_build docs/_generated
