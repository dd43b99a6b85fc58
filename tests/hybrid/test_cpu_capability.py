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
torch.set_num_threads(int(sys.argv[2]))
recording = rismusic.load_sample("ideal_10dB")[:6]
values = {}
for method, sources in (("hybrid", "auto"), ("sbl", 2), ("omp", 3)):
    estimate = rismusic.locate(recording, method=method, n_sources=sources)
    position = torch.stack([getattr(estimate.sources, n) for n in ("azimuth", "elevation", "range")], -1)
    values[method], values[method + "_std"] = position.numpy(), estimate.std.numpy()
numpy.savez(sys.argv[1], capability=torch.backends.cpu.get_cpu_capability(), **values)
"""
# Instruction sets of PyTorch's kernels and of oneDNN, and threads.
VARIANTS = {
    "default": ({"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}, 1),
    "avx2": ({"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}, 1),
    "two threads": ({"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}, 2),
}


def estimates(folder, name, environment, threads):
    path = folder / f"{name}.npz"
    # A test run under such a variable compares with the best set of this machine nevertheless.
    clean = {key: value for key, value in os.environ.items() if key not in VARIANTS["avx2"][0]}
    subprocess.run([sys.executable, "-c", SCRIPT, path, str(threads)], env=clean | environment, check=True)
    return np.load(path)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return estimates(tmp_path_factory.mktemp("cpu"), "reference", {}, 1)


@pytest.mark.parametrize("name", VARIANTS)
def test_instruction_sets_and_threads_change_rounding_only(name, reference, tmp_path):
    other = estimates(tmp_path, name, *VARIANTS[name])
    if name in ("default", "avx2"):
        assert str(other["capability"]).lower() == name
    for method in ("hybrid", "sbl", "omp"):
        assert reference[method].shape == other[method].shape
        assert np.array_equal(np.isnan(reference[method]), np.isnan(other[method]))
        gap = np.abs(reference[method] - other[method]) / reference[f"{method}_std"]
        assert np.nanmax(gap) < 0.01


def test_the_variables_are_those_of_this_torch():
    assert torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2", "AVX512", "NO AVX")
    assert rismusic.load_sample("ideal_10dB").snapshots.shape[0] >= 6
