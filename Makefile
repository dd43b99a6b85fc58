# Everything from nothing: needs Python 3.11 or newer and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
WITHOUT_FCNTL := tests/files/test_platforms.py tests/files/test_small_files.py \
	tests/tuning/test_storage.py tests/nn/test_train_folder.py tests/estimation/test_kernel_cache.py \
	--deselect tests/nn/test_train_folder.py::test_from_the_command_line_and_from_python
# Estimates that end where an iteration stops: rounding, and so the instruction set, moves them. Shapes, bounds in
# closed form, files and errors do not depend on it; Numba compiles for the processor that it finds.
NUMERICAL := tests/test_crb.py tests/hybrid/test_hybrid_locate.py tests/hybrid/test_applicability.py \
	$(addprefix tests/estimation/test_, locate.py conformance.py refine.py maximum_likelihood.py \
	levenberg_marquardt.py likelihood.py newton.py rap_music.py sbl_powers.py sbl_peaks.py relax.py \
	birth_death.py model_order.py)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-cpu test-no-fcntl test-wheel lint docs benchmarks clean

# Test processes share compiled bytecode: without it each of them compiles all modules again.
test test-cpu test-no-fcntl: export PYTHONDONTWRITEBYTECODE =

# A recording that this code did not make, with its truth inside.
demo: .venv/.base
	mkdir -p demo
	$(BIN)/rismusic check samples/ideal_10dB.h5
	$(BIN)/rismusic locate samples/ideal_10dB.h5 --plot demo/scene.png --scene 2 --overwrite
	@echo "picture: demo/scene.png"

test: .venv/.dev
	$(BIN)/pytest -n 2 --dist loadscope --no-loadscope-reorder

# The numerical tests with other instruction sets: estimates must not depend on the processor.
test-cpu: .venv/.dev
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 $(BIN)/pytest -q -n 2 --dist loadscope $(NUMERICAL)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/pytest -q -n 2 --dist loadscope $(NUMERICAL)

# As on a platform without fcntl: it cannot be imported, in no process.
test-no-fcntl: .venv/.dev
	HIDDEN_MODULES=fcntl PYTHONPATH=tests/hidden $(BIN)/pytest -q -p no:xdist \
		-W "ignore:only soft file lock" $(WITHOUT_FCNTL)

# The examples of the README and of the first page of the docs, from a wheel, outside the checkout.
test-wheel: .venv/.dev
	$(BIN)/python benchmarks/wheel.py

lint: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: .venv/.dev
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

benchmarks: .venv/.dev
	$(BIN)/python benchmarks/simulation.py
	$(BIN)/python benchmarks/bounds.py
	$(BIN)/python benchmarks/spectra.py
	$(BIN)/python benchmarks/estimators.py

.venv/.torch: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv .venv
	$(PIP) torch
	touch $@

.venv/.base: .venv/.torch pyproject.toml
	$(PIP) -e '.[fast,report]'
	touch $@

.venv/.dev: .venv/.base
	$(PIP) -e '.[fast,report,cluster,tune,dev,docs]'
	touch $@

clean:
	rm -rf .venv demo docs/_build docs/_generated
