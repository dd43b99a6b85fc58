"""Weights of a network as a safetensors file that says what they are for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rismusic.array import Panel
from rismusic.errors import InputError
from rismusic.estimation.grid import SearchGrid, Volume
from rismusic.nn.checkpoint import read_tensors, write_tensors
from rismusic.nn.network import GridNetwork, build_network
from rismusic.nn.spec import KEY, NetworkSpec, TrainSpec, WeightsCard, weights_path
from rismusic.registry import NETWORKS
from rismusic.version import __version__

_FORMAT = "rismusic-network/1"
_ELEMENTS = "panel.elements"
_CHECKSUM = "checksum"
# Share of the wavelength by which elements of the same panel may differ.
_SAME = 1e-3


def save_network(
    path: Path,
    network: GridNetwork,
    weights: Mapping[str, Tensor] | None = None,
    *,
    training: TrainSpec | None = None,
    card: WeightsCard | None = None,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write a network's weights, with its sizes, panel and grid.

    Args:
        path: the file; one that exists is replaced.
        network: whose sizes, panel and grid are written.
        weights: by name of the parameter; those of the network if none.
        training: the settings that they come from.
        card: what they are for.
        notes: more to say of them.

    Raises:
        InputError: the disk is full or refuses.
    """
    panel, volume = network.grid.panel, network.grid.volume
    held = (
        {name: value.detach() for name, value in network.named_parameters()} if weights is None else weights
    )
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
    tensors = {**held, _ELEMENTS: panel.elements.double()}
    write_tensors(path, tensors, {**metadata, _CHECKSUM: checksum(tensors)})


def load_network(
    weights: str | Path, *, panel: Panel | None = None, device: torch.device | str = "cpu"
) -> GridNetwork:
    """The network of a file of weights, on its panel and grid; see :func:`read_network`."""
    return read_network(weights, panel=panel, device=device)[0]


def read_network(
    weights: str | Path, *, panel: Panel | None = None, device: torch.device | str = "cpu"
) -> tuple[GridNetwork, dict[str, str]]:
    """The network of a file of weights, on its panel and grid, and what else the file says.

    Args:
        weights: ``ideal``, ``robust`` or a file of :func:`save_network`.
        panel: the panel that it is meant for; any if none.
        device: where it is to work.

    Raises:
        InputError: no file of weights of this package, one that is cut short or damaged, or one for another
            panel.
    """
    path = weights_path(weights)
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != _FORMAT or _ELEMENTS not in tensors:
        raise InputError(str(path), "weights of a rismusic network", "weights of something else")
    if metadata.get(_CHECKSUM, found := checksum(tensors)) != found:
        raise InputError(
            str(path), f"weights as they were written, {metadata[_CHECKSUM][:12]}", "damaged ones"
        )
    try:
        sizes = json.loads(metadata["network"])
        if (kind := sizes.get("kind", "sbl_unrolled")) not in NETWORKS:
            raise InputError(
                str(path),
                f"the weights are of a network {kind!r} that is not registered; name the module that "
                "registers it with --plugins",
            )
        spec = NetworkSpec(**sizes)
        own = Panel(tensors.pop(_ELEMENTS), float(metadata["wavelength_m"])).to(device)
        volume = Volume(*json.loads(metadata["volume"]))
    except InputError:
        raise
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(str(path), "weights of a network of this version", str(error)) from None
    if panel is not None:
        check_panel(str(path), own, panel)
    network = build_network(spec, SearchGrid.cover(own, volume, spec.oversampling)).to(device)
    shape = json.dumps(network.grid.shape)
    if metadata.get("grid") != shape:
        raise InputError(str(path), f"weights for the grid {shape}", f"weights for {metadata.get('grid')}")
    restore(str(path), network, tensors)
    return network, metadata


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors: their names, types, shapes and numbers."""
    total = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        total.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        total.update(value.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def restore(source: str, network: GridNetwork, weights: Mapping[str, Tensor]) -> None:
    """Give a network its weights.

    Raises:
        InputError: weights of another network.
    """
    own = dict(network.named_parameters())
    for name in own.keys() | weights.keys():
        shapes = [tuple(held[name].shape) if name in held else None for held in (own, weights)]
        if shapes[0] != shapes[1]:
            said = ["none" if shape is None else f"shape {list(shape)}" for shape in shapes]
            raise InputError(source, f"for the weight {name} {said[0]}, as in the network", said[1])
        if name in weights and not weights[name].isfinite().all():
            raise InputError(source, f"finite numbers in the weight {name}", "a NaN or an infinity")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])


def check_panel(source: str, own: Panel, panel: Panel) -> None:
    """Refuse a panel that weights were not made for.

    Raises:
        InputError: another wavelength, another number of elements, or elements elsewhere.
    """
    if own.size == panel.size and abs(own.wavelength - panel.wavelength) > _SAME * own.wavelength:
        raise InputError(
            source, f"weights for a wavelength of {panel.wavelength:g} m", f"weights for {own.wavelength:g} m"
        )
    if (other := other_panel(own, panel)) is not None:
        raise InputError(source, f"weights for this panel, N = {panel.size} elements", f"weights for {other}")


def other_panel(own: Panel, panel: Panel) -> str | None:
    """How one panel differs from another when lengths are in wavelengths; none where it does not."""
    if own.size != panel.size:
        return f"one of {own.size} elements"
    gap = own.elements.cpu() / own.wavelength - panel.elements.cpu() / panel.wavelength
    away = float(gap.abs().max())
    return f"one whose elements are up to {away:.2g} wavelengths elsewhere" if away > _SAME else None
