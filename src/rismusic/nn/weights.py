"""Weights files: safetensors with the network's sizes, panel, grid and card as metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from rismusic.array import Panel, dtype_name
from rismusic.errors import InputError
from rismusic.estimation.grid import SearchGrid, Volume
from rismusic.io.validation import check_panel as check_spacing
from rismusic.nn.checkpoint import read_tensors, write_tensors
from rismusic.nn.network import GridNetwork, build_network
from rismusic.nn.spec import KEY, NetworkSpec, TrainSpec, WeightsCard, weights_path
from rismusic.records import Record, parse_record
from rismusic.registry import NETWORKS
from rismusic.spec import Positive, Wave
from rismusic.version import __version__

_FORMAT = "rismusic-network/1"
_ELEMENTS = "panel.elements"
_CHECKSUM = "checksum"
# Relative tolerance of element positions, in wavelengths, and of the wavelength.
_SAME = 1e-3
_MOST_ELEMENTS = 2**14
# Largest number of grid points times elements: one gigabyte of steering vectors.
_LARGEST_GRID = 2**27


class _Sizes(Record):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, str | int | float | bool | None] = Field(init=False)


def save_network(
    path: Path,
    network: GridNetwork,
    weights: Mapping[str, Tensor] | None = None,
    *,
    training: TrainSpec | None = None,
    card: WeightsCard | None = None,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write the weights of a network with its sizes, panel and grid.

    Args:
        path: the file; replaced if it exists.
        network: the network.
        weights: weights by parameter name; by default those of the network.
        training: the training settings.
        card: the card.
        notes: further metadata.

    Raises:
        InputError: the disk is full or not writable.
    """
    panel, volume = network.grid.panel, network.grid.volume
    if weights is None:
        weights = {name: value.detach() for name, value in network.named_parameters()}
    metadata = {
        "format": _FORMAT,
        "version": __version__,
        "network": network.spec.model_dump_json(exclude={"plugins"}),
        "wavelength_m": repr(panel.wavelength),
        "elements": str(panel.size),
        "volume": json.dumps([volume.azimuth_max, volume.elevation_max, volume.range_min, volume.range_max]),
        "grid": json.dumps(network.grid.shape),
        **({} if training is None else {"training": training.model_dump_json()}),
        **({} if card is None else {KEY: card.model_dump_json()}),
        **(notes or {}),
    }
    tensors = {**weights, _ELEMENTS: panel.elements.double()}
    write_tensors(path, tensors, {**metadata, _CHECKSUM: checksum(tensors)})


def load_network(
    weights: str | Path, *, panel: Panel | None = None, device: torch.device | str = "cpu"
) -> GridNetwork:
    """Load a network, with its panel and grid, from a weights file.

    Args:
        weights: ``ideal``, ``robust``, or a weights file such as ``best.safetensors`` of a training.
        panel: the panel it must be for; by default any.
        device: device of the network.

    Raises:
        InputError: not a weights file of this package, a damaged one, or one for another panel.

    Example:
        >>> prediction = load_network("ideal")(simulate(scenes=4))
    """
    return read_network(weights, panel=panel, device=device)[0]


def read_network(
    weights: str | Path,
    *,
    panel: Panel | None = None,
    device: torch.device | str = "cpu",
    wave: Wave = "spherical",
) -> tuple[GridNetwork, dict[str, str]]:
    """Load a network, with its panel and grid, from a weights file.

    Args:
        weights: ``ideal``, ``robust``, or a file of :func:`save_network`.
        panel: the panel it must be for; by default any.
        device: device of the network.
        wave: form of the wave in the statistics that the network is given.

    Returns:
        The network and the metadata of the file.

    Raises:
        InputError: not a weights file of this package, a damaged one, or one for another panel.
    """
    path = weights_path(weights)
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != _FORMAT or _ELEMENTS not in tensors:
        raise InputError(str(path), "not a weights file of rismusic")
    for name, value in tensors.items():
        if not value.is_floating_point():
            kind = dtype_name(value.dtype)
            raise InputError(str(path), f"weight {name}: must be floating-point numbers; got {kind}")
    if _CHECKSUM in metadata and metadata[_CHECKSUM] != checksum(tensors):
        raise InputError(str(path), "the weights are damaged: their checksum does not match")
    spec, own, volume = _described(str(path), tensors.pop(_ELEMENTS), metadata)
    own = own.replace(wave=wave)
    if panel is not None:
        check_panel(str(path), own, panel)
    try:
        grid = SearchGrid.cover(own.to(device), volume, spec.oversampling)
    except InputError as error:
        raise InputError(str(path), str(error)) from None
    if metadata.get("grid") != json.dumps(grid.shape):
        raise InputError(
            str(path),
            f"the weights are for the grid {metadata.get('grid')}, but this version builds {[*grid.shape]}",
        )
    _check_size(str(path), spec, grid, tensors)
    network = build_network(spec, grid).to(device)
    restore(str(path), network, tensors)
    return network, metadata


class _Volume(Record):
    values: tuple[Positive, Positive, Positive, Positive]


class _Wavelength(Record):
    value: Positive


def _described(
    source: str, elements: Tensor, metadata: Mapping[str, str]
) -> tuple[NetworkSpec, Panel, Volume]:
    """The settings, panel and volume that the metadata describe.

    Raises:
        InputError: they are incomplete or impossible, or the network is not registered.
    """
    try:
        sizes = parse_record(_Sizes, metadata["network"], source, "a weights file").model_dump()
        if (kind := sizes.get("kind", "sbl_unrolled")) not in NETWORKS:
            raise InputError(
                source,
                f"the weights are of a network {kind!r} that is not registered; name the module that "
                "registers it with --plugins",
            )
        if "climbs" in sizes:  # Name of the setting in files written before version 0.2.
            sizes["sbl_iterations"] = sizes.pop("climbs")
        if "plugins" in sizes:  # A file does not name code to run.
            raise InputError(source, "the weights name plugins, which a file may not do")
        spec = NetworkSpec(**sizes)
        wavelength = parse_record(
            _Wavelength, f'{{"value": {metadata["wavelength_m"]}}}', source, "a weights file"
        ).value
        if elements.ndim != 2 or elements.shape[1] != 3 or not 1 <= len(elements) <= _MOST_ELEMENTS:
            raise InputError(source, f"{_ELEMENTS}: has shape {list(elements.shape)}, not [N, 3]")
        if not elements.isfinite().all():
            raise InputError(source, f"{_ELEMENTS}: has non-finite values")
        panel = Panel(elements, wavelength)
        check_spacing(panel)
        limits = parse_record(_Volume, f'{{"values": {metadata["volume"]}}}', source, "a weights file")
        return spec, panel, Volume(*limits.values)
    except InputError as error:
        raise error if error.field == source else InputError(source, str(error)) from None
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            source, f"the metadata do not describe a network of this version ({error})"
        ) from None


def _check_size(source: str, spec: NetworkSpec, grid: SearchGrid, tensors: Mapping[str, Tensor]) -> None:
    """Refuse sizes of a network that the tensors of the file cannot have, before it is built.

    Raises:
        InputError: a network that is larger than the tensors, or a grid that is too large.
    """
    if len(grid) * grid.panel.size > _LARGEST_GRID:
        raise InputError(
            source, f"{len(grid)} grid points with {grid.panel.size} elements are too many for a network"
        )
    if spec.kind != "sbl_unrolled":
        return
    # Each block has four matrices of width x width, and each grid plane twelve rows of weights.
    least = spec.width * (4 * spec.stages * spec.depth * spec.width + 12 * grid.shape[2])
    present = sum(value.numel() for value in tensors.values())
    if present < least:
        raise InputError(
            source,
            f"the network of these sizes has more than {least:,} weights, but the file holds {present:,}",
        )


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors: names, types, shapes and values."""
    total = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        total.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        total.update(value.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def restore(source: str, network: GridNetwork, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into a network.

    Args:
        source: the file, for error messages.
        network: the network.
        weights: weights by parameter name.

    Raises:
        InputError: weights of another network, or non-finite ones.
    """
    own = dict(network.named_parameters())
    for name in own.keys() | weights.keys():
        expected, given = (list(part[name].shape) if name in part else "absent" for part in (own, weights))
        if expected != given:
            raise InputError(source, f"weight {name}: shape {expected} in the network, {given} in the file")
        if not weights[name].isfinite().all():
            raise InputError(source, f"weight {name}: has non-finite values")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])


def check_panel(source: str, own: Panel, panel: Panel) -> None:
    """Check that weights are for a panel.

    Args:
        source: the file, for error messages.
        own: panel of the weights.
        panel: panel to use.

    Raises:
        InputError: the wavelength, the number of elements or their positions differ.
    """
    if own.size == panel.size and abs(own.wavelength - panel.wavelength) > _SAME * own.wavelength:
        raise InputError(
            source,
            f"the weights are for a wavelength of {own.wavelength:g} m, the panel has {panel.wavelength:g} m",
        )
    if (other := other_panel(own, panel)) is not None:
        raise InputError(source, f"the weights are for another panel, {other}; this one has N = {panel.size}")


def other_panel(own: Panel, panel: Panel) -> str | None:
    """How the panel ``own`` differs from ``panel`` with lengths in wavelengths; none if it does not."""
    if own.size != panel.size:
        return f"with N = {own.size} elements"
    gap = own.elements.cpu() / own.wavelength - panel.elements.cpu() / panel.wavelength
    distance = float(gap.abs().max())
    return f"with elements up to {distance:.2g} wavelengths away from these" if distance > _SAME else None
