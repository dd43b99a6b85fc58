"""The same estimates on every processor: instruction sets and thread counts change rounding only."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import rismusic

SCRIPT = """
import sys, numpy, torch, rismusic
recording = rismusic.load_sample("ideal_10dB")[:2]
for threads, path in enumerate(sys.argv[1:], 1):
    torch.set_num_threads(threads)
    values = {}
    for method, sources in (("hybrid", "auto"), ("sbl", 2), ("omp", 3)):
        estimate = rismusic.locate(recording, method=method, n_sources=sources)
        position = torch.stack([getattr(estimate.sources, n) for n in ("azimuth", "elevation", "range")], -1)
        values[method], values[method + "_std"] = position.numpy(), estimate.std.numpy()
    numpy.savez(path, capability=torch.backends.cpu.get_cpu_capability(), threads=threads, **values)
"""
# Instruction sets of PyTorch's kernels and of oneDNN.
VARIANTS = {
    "default": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
}


def estimates(folder, environment, threads=1):
    """Estimates of a process with these variables, with one thread, two threads and so on."""
    paths = [folder / f"{number}.npz" for number in range(1, threads + 1)]
    # A test run under such a variable compares with the best set of this machine nevertheless.
    clean = {key: value for key, value in os.environ.items() if key not in VARIANTS["avx2"]}
    subprocess.run([sys.executable, "-c", SCRIPT, *paths], env=clean | environment, check=True)
    return [np.load(path) for path in paths]


@pytest.fixture(scope="module")
def best_set(tmp_path_factory):
    """With the best instruction set of this machine: one thread, and two."""
    environment = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    return estimates(tmp_path_factory.mktemp("cpu"), environment, threads=2)


@pytest.mark.parametrize("name", [*VARIANTS, "two threads"])
def test_instruction_sets_and_threads_change_rounding_only(name, best_set, tmp_path):
    reference = best_set[0]
    if name in VARIANTS:
        (other,) = estimates(tmp_path, VARIANTS[name])
        assert str(other["capability"]).lower() == name
    else:
        other = best_set[1]
        assert other["threads"] == 2
    for method in ("hybrid", "sbl", "omp"):
        assert reference[method].shape == other[method].shape
        assert np.array_equal(np.isnan(reference[method]), np.isnan(other[method]))
        gap = np.abs(reference[method] - other[method]) / reference[f"{method}_std"]
        assert np.nanmax(gap) < 0.01


def test_the_variables_are_those_of_this_torch():
    assert torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2", "AVX512", "NO AVX")
    assert rismusic.load_sample("ideal_10dB").snapshots.shape[0] >= 6
