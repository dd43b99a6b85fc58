"""Weights files and parts of a benchmark with wrong content: one sentence before anything is built."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import rismusic
from rismusic.benchmark.run import bench
from rismusic.benchmark.spec import BenchSpec, all_units
from rismusic.benchmark.summary import Store
from rismusic.errors import InputError
from rismusic.nn.checkpoint import checksum, load_network

IDEAL = Path(rismusic.__file__).parent / "weights" / "ideal.safetensors"


def altered(path, *, tensors=(), network=(), **metadata):
    """The shipped weights with some changes, and a checksum that fits."""
    values = load_file(IDEAL) | dict(tensors)
    header = IDEAL.read_bytes()
    length = int.from_bytes(header[:8], "little")
    held = json.loads(header[8 : 8 + length])["__metadata__"]
    held["network"] = json.dumps(json.loads(held["network"]) | dict(network))
    held |= metadata
    held["checksum"] = checksum(values)
    save_file(values, path, held)
    return path


CASES = {
    "depth": ({"network": {"depth": 10**6}}, "depth"),
    "large": ({"network": {"depth": 64, "width": 1024, "stages": 8, "heads": 64}}, "weights, but the file"),
    "iterations": ({"network": {"climbs": 10**9}}, "sbl_iterations"),
    "plug-ins": ({"network": {"plugins": ["os"]}}, "is not a weights file"),
    "tiny wavelength": ({"wavelength_m": "1e-300"}, "wavelength: must be 1e-15 to 1e+15"),
    "no wavelength": ({"wavelength_m": "nan"}, "is not a weights file"),
    "elements far apart": (
        {"tensors": {"panel.elements": 1e7 * torch.randn(144, 3).double()}}, "elements: extend over"
    ),
    "elements that are no positions": ({"tensors": {"panel.elements": torch.zeros(144)}}, "not [N, 3]"),
    "elements that are not finite": (
        {"tensors": {"panel.elements": torch.full((144, 3), torch.nan).double()}}, "non-finite"
    ),
    "integers": ({"tensors": {"stages.0.read.bias": torch.ones(96, dtype=torch.int64)}}, "floating-point"),
    "bytes": ({"tensors": {"x": torch.ones(96, dtype=torch.int8)}}, "dtype"),
    "volume": ({"volume": "[1.0, 0.5, 1e-12, 10.0]"}, "are for the grid"),
    "volume of one number": ({"volume": "[1.0]"}, "is not a weights file"),
    "deep JSON": ({"network_": "x", "volume": "[" * 10**5}, "is not a weights file"),
    "grid": ({"grid": "[1, 2]"}, "are for the grid"),
}  # fmt: skip


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("name", CASES)
def test_impossible_weights_are_one_sentence(name, tmp_path):
    changes, sentence = CASES[name]
    path = altered(tmp_path / "w.safetensors", **changes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError) as error:
        load_network(path)
    assert error.value.field == str(path)
    assert sentence in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 1024  # KiB


def test_headers_are_bounded(tmp_path):
    path = tmp_path / "w.safetensors"
    for head in (
        (2**40).to_bytes(8, "little") + b"{}",
        (10**5).to_bytes(8, "little") + b"[" * 10**5,
        b"",
        (2).to_bytes(8, "little") + b"[]",
    ):
        path.write_bytes(head)
        with pytest.raises(InputError, match="is not a safetensors file"):
            load_network(path)


def test_a_header_that_declares_more_than_the_file_holds(tmp_path):
    path = tmp_path / "w.safetensors"
    head = json.dumps({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head)
    with pytest.raises(
        InputError, match=r"its header declares 4,000,000,0\d\d,\d+ bytes, the file has \d+\)$"
    ):
        load_network(path)


def test_a_padded_file_is_not_read(tmp_path):
    """A sparse file of 3 GB takes no room on the disk, but as much memory as it is long."""
    path = altered(tmp_path / "w.safetensors")
    os.truncate(path, 3 * 10**9)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="is not a safetensors file, or it is truncated"):
        load_network(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 1024  # KiB


def test_parts_with_wrong_content_are_computed_again(tmp_path):
    spec = BenchSpec(
        methods=("bartlett",), sources=(1,), snr_db=(10.0,), scenes=2, panel={"rows": 3, "columns": 3}
    )
    bench(spec, out=tmp_path / "bench", workers=1)
    store, unit = Store(tmp_path / "bench"), all_units(spec)[0]
    path = store.path(unit)
    whole = dict(store.read(unit))
    first = next(iter(whole))
    for values in (
        {**whole, first: np.array(["text"] * 2)},
        {**whole, first: np.zeros((2, 3, 4))},
        {**whole, first: np.zeros((10**7, 1))},
        {name: value for name, value in whole.items() if name != first},
    ):
        np.savez_compressed(path, **values)
        assert store.read(unit) is None
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match="is a folder"):
        store.read(unit)
