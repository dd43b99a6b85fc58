"""Recordings written with numpy, h5py and scipy alone, by code that shares nothing with the package's."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
import torch

from rismusic.io import Recording
from rismusic.simulation.simulator import simulate
from rismusic.spec import SystemSpec

S, L, M, N, K = 4, 3, 2, 6, 2
Values = dict[str, Any]


def sound(
    scenes: int = S, snapshots: int = L, antennas: int = M, sources: int = K, *, dtype: Any = np.complex64
) -> Values:
    """Every field of a sound recording of a 3 x 2 panel; each scene has its own channel and codes."""
    rng = np.random.default_rng(0)

    def noise(*shape: int) -> Any:
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)

    x, y = np.meshgrid((np.arange(3) - 1) * 0.15, (np.arange(2) - 0.5) * 0.15)
    truth = rng.uniform(0.1, 1.0, (3, scenes, sources))
    if sources > 1:
        truth[:, 0, -1] = np.nan
    return {
        "format": "rismusic/1",
        "wavelength": 0.3,
        "elements": np.stack((x.ravel(), y.ravel(), 0 * x.ravel()), -1),
        "snapshots": noise(scenes, snapshots, antennas),
        "channel": noise(scenes, antennas, N),
        "codes": noise(scenes, snapshots, N),
        "noise_variance": rng.uniform(0.1, 1.0, scenes),
        "truth/azimuth": truth[0],
        "truth/elevation": truth[1],
        "truth/range": truth[2],
    }


def direct() -> Values:
    """A sound recording of the panel itself."""
    values = sound(antennas=N)
    del values["channel"], values["codes"]
    return values


def flat(values: Values) -> Values:
    return {name.replace("/", "_"): value for name, value in values.items()}


def write_h5(path: Path, values: Values) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in values.items():
            if name in ("format", "wavelength", "wave", "pattern_exponent", "symbols"):
                file.attrs[name] = value
            else:
                file[name] = value
    return path


def write_npz(path: Path, values: Values, *, compressed: bool = False) -> Path:
    if not compressed:
        np.savez(path, **flat(values))
        return path
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, value in flat(values).items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, np.asanyarray(value))
    return path


def write_mat5(path: Path, values: Values, *, compressed: bool = False) -> Path:
    scipy.io.savemat(path, flat(values), do_compression=compressed)
    return path


def write_mat73(path: Path, values: Values) -> Path:
    """As MATLAB's ``save -v7.3``: axes reversed and at least two, pairs (real, imag), trailing ones cut."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in flat(values).items():
            if isinstance(value, str):
                dataset = file.create_dataset(name, data=np.array([[ord(c)] for c in value], np.uint16))
                dataset.attrs["MATLAB_class"] = np.bytes_("char")
                continue
            value = np.asarray(value)
            shape = value.shape
            while len(shape) > 2 and shape[-1] == 1:
                shape = shape[:-1]
            shape = (1,) * (2 - len(shape)) + shape  # a vector is a row, a scalar [1, 1]
            value = value.reshape(shape).T
            part = f"f{value.real.dtype.itemsize}"
            if np.iscomplexobj(value):
                pairs = np.empty(value.shape, [("real", part), ("imag", part)])
                pairs["real"], pairs["imag"] = value.real, value.imag
                value = pairs
            dataset = file.create_dataset(name, data=value)
            dataset.attrs["MATLAB_class"] = np.bytes_("single" if part == "f4" else "double")
    head = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Jan  1 00:00:00 2024 HDF5 schema 1.00 ."
    with path.open("r+b") as file:
        file.write(head.ljust(116) + bytes(8) + b"\0\2IM")
    return path


WRITERS = {"h5": write_h5, "npz": write_npz, "mat 5": write_mat5, "mat 7.3": write_mat73}
SUFFIX = {"h5": ".h5", "npz": ".npz", "mat 5": ".mat", "mat 7.3": ".mat"}


def simulated(
    scenes: int = 4, *, seed: int = 0, dtype: torch.dtype = torch.float32, **settings: Any
) -> Recording:
    """The simulator's scenes of a small system, settings of which may be changed."""
    spec = SystemSpec(**{"panel": {"rows": 3, "columns": 4}, "sources": 2, **settings})
    return simulate(spec, scenes=scenes, seed=seed, dtype=dtype)
