"""Files of a network: checkpoints of a training, and weights with the network's sizes, panel, grid and card.

Both are safetensors files. The tensors of a checkpoint are written to a file with a new name. A small JSON
file with the name of the tensor file is then renamed into place: the new checkpoint replaces the old one at
that moment, whatever happens before.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rismusic.array import Panel, dtype_name
from rismusic.errors import InputError
from rismusic.estimation.grid import SearchGrid, Volume
from rismusic.files import read_beginning, read_small, replace_file
from rismusic.io.schema import check_panel as check_spacing
from rismusic.nn.network import GridNetwork, build_network
from rismusic.nn.run_folder import SETTINGS, STATE, RunFolder
from rismusic.nn.spec import KEY, NetworkSpec, TrainSpec, WeightsCard, reason_of, weights_path
from rismusic.registry import NETWORKS
from rismusic.spec import Natural, Positive, Record, Wave, flat_settings, parse_record
from rismusic.version import __version__

_CHECKPOINT: Literal["rismusic-training/1"] = "rismusic-training/1"
_TENSOR_FILE = r"^state-\d{4,20}-\d{7,20}\.safetensors$"


@dataclass
class State:
    """Progress of a training, without its tensors.

    Args:
        begun: whether the checks before the first step are done.
        step: optimizer steps done in this epoch, including skipped ones.
        skipped: steps skipped because of non-finite gradients, in all epochs.
        clipped: steps of this epoch whose gradient was clipped.
        best_epoch: its epoch, or -1.
        sums: sum of each logged number over the steps of this epoch.
    """

    # Strict, because it is read from a file.
    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    begun: bool = False
    epoch: Natural = 0
    step: Natural = 0
    skipped: Natural = 0
    clipped: Natural = 0
    validation: float | None = None
    best: float | None = None
    best_epoch: int = -1
    sums: dict[str, float] = field(default_factory=dict)
    stopped: bool = False
    scaler: dict[str, int | float] = field(default_factory=dict)
    log_bytes: Natural = 0


class _Version(Record):
    format: Literal["rismusic-training/1"]
    version: str


class _Checkpoint(_Version):
    tensors: Annotated[str, Field(pattern=_TENSOR_FILE)]
    settings: dict[str, object]
    state: State


def save_checkpoint(run: RunFolder, settings: TrainSpec, state: State, tensors: dict[str, Tensor]) -> None:
    """Write a checkpoint and remove the previous one, which is kept if the disk is full.

    The settings are stored to detect ones that were changed before resuming.
    """
    name = _tensor_file(state)
    write_tensors(run.folder / name, tensors, {"format": _CHECKPOINT})
    record = _Checkpoint(
        format=_CHECKPOINT,
        version=__version__,
        tensors=name,
        settings=settings.model_dump(mode="json"),
        state=state,
    )
    with replace_file(run.folder / STATE, overwrite=True) as temporary:
        temporary.write_bytes((record.model_dump_json(indent=1) + "\n").encode())
    for old in run.folder.glob("state-*.safetensors"):
        if old.name != name and re.match(_TENSOR_FILE, old.name):
            old.unlink(missing_ok=True)


def load_checkpoint(run: RunFolder) -> tuple[State, dict[str, Tensor]] | None:
    """The checkpoint of a run folder, or none before the first one."""
    path = run.folder / STATE
    if not path.exists():
        if any(file.name != _tensor_file(State()) for file in run.folder.glob("state-*.safetensors")):
            raise InputError(
                str(path), "the file is missing, so the training in this folder cannot be resumed"
            )
        return None
    content = read_small(path)
    version = parse_record(_Version, content, str(path), "a training checkpoint").version
    if version != __version__:
        raise InputError(
            str(path),
            f"the checkpoint was written by rismusic {version}, this is {__version__}; resume it with that "
            "version, or start a new training from its weights with --start",
        )
    record = parse_record(_Checkpoint, content, str(path), "a training checkpoint")
    _check_settings(run, record.settings)
    tensors, metadata = read_tensors(run.folder / record.tensors)
    if metadata.get("format") != _CHECKPOINT:
        raise InputError(
            str(run.folder / record.tensors), "the tensors are not those of a training checkpoint"
        )
    return record.state, tensors


class _TensorRecord(Record):
    dtype: Literal["F16", "BF16", "F32", "F64", "I64", "I32", "U8", "BOOL"]
    shape: Annotated[list[Natural], Field(max_length=8)]
    data_offsets: tuple[Natural, Natural]


class _Header(Record):
    """Header of a safetensors file: metadata, and a record for each tensor."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, _TensorRecord] = Field(init=False)

    metadata: Annotated[dict[str, str], Field(alias="__metadata__", default_factory=dict)]


# The largest network of the settings has some hundred megabytes, with the state of its optimizer.
_LARGEST_TENSORS, _LARGEST_HEADER = 2**32, 2**22


def _tensor_file(state: State) -> str:
    return f"state-{state.epoch:04d}-{state.step:07d}.safetensors"


def _check_settings(run: RunFolder, begun_with: dict[str, object]) -> None:
    """Refuse settings that were changed after the training was started.

    Settings that the checkpoint does not have yet count as having had their default.
    """
    before = flat_settings(TrainSpec().model_dump(mode="json")) | flat_settings(begun_with)
    now = flat_settings(run.settings().model_dump(mode="json"))
    for name in dict.fromkeys((*before, *now)):
        if before.get(name) != now.get(name):
            raise InputError(
                str(run.folder / SETTINGS),
                f"{name} was {before.get(name)} when the training was started and is now {now.get(name)}; "
                "restore it, or start a new training from the weights with --start",
            )


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors to a safetensors file atomically."""
    data = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata)
    with replace_file(path, overwrite=True) as temporary:
        temporary.write_bytes(data)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    The header is checked before the tensors are built: its size, and the types and the names in it.
    """
    # The header first, so that a large file of another kind is not read as a whole.
    head = read_beginning(path, 8 + _LARGEST_HEADER)
    length = int.from_bytes(head[:8], "little")
    if not 2 <= length <= len(head) - 8:
        raise InputError(str(path), "is not a safetensors file, or it is truncated")
    header = parse_record(_Header, head[8 : 8 + length], str(path), "a safetensors file")
    # A file may be padded with what it takes no room for on the disk.
    size = 8 + length + max((one.data_offsets[1] for one in header.__pydantic_extra__.values()), default=0)
    if (there := path.stat().st_size) != size:
        problem = f"its header declares {size:,} bytes, the file has {there:,}"
        raise InputError(str(path), f"is not a safetensors file, or it is truncated ({problem})")
    if size > _LARGEST_TENSORS:
        raise InputError(str(path), f"is larger than {_LARGEST_TENSORS >> 30} GiB")
    data = read_small(path, limit=size)
    try:
        return load(data), header.metadata
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(str(path), f"is not a safetensors file, or it is truncated ({error})") from None


# Tensors of AdamW for each weight, and whether they have its shape.
_MOMENTS = {"step": False, "exp_avg": True, "exp_avg_sq": True}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer state as named tensors, ``<parameter number>.<name>``."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, values in state.items() for name, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Load the state of AdamW that :func:`optimizer_tensors` returned."""
    weights = [one for group in optimizer.param_groups for one in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, _, key = name.partition(".")
        own = weights[int(number)] if number.isdecimal() and int(number) < len(weights) else None
        if own is None or key not in _MOMENTS or value.shape != (own.shape if _MOMENTS[key] else ()):
            raise InputError("checkpoint", f"the tensor optimizer/{name} does not fit this network")
        state.setdefault(int(number), {})[key] = value
    for place, values in state.items():
        if missing := _MOMENTS.keys() - values.keys():
            raise InputError("checkpoint", f"the tensor optimizer/{place}.{min(missing)} is missing")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


_WEIGHTS = "rismusic-network/1"
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
    """Write the weights of a network, or others by parameter name, with its sizes, panel and grid."""
    panel, volume = network.grid.panel, network.grid.volume
    if weights is None:
        weights = {name: value.detach() for name, value in network.named_parameters()}
    metadata = {
        "format": _WEIGHTS,
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
    """Load a network, for a form of the wave, with the metadata of its file; see :func:`load_network`."""
    path = weights_path(weights)
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != _WEIGHTS or _ELEMENTS not in tensors:
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


class _Geometry(Record):
    wavelength: Positive
    volume: tuple[Positive, Positive, Positive, Positive]


def _described(
    source: str, elements: Tensor, metadata: Mapping[str, str]
) -> tuple[NetworkSpec, Panel, Volume]:
    """The settings, panel and volume that the metadata describe."""
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
        text = f'{{"wavelength": {metadata["wavelength_m"]}, "volume": {metadata["volume"]}}}'
        geometry = parse_record(_Geometry, text, source, "a weights file")
        if elements.ndim != 2 or elements.shape[1] != 3 or not 1 <= len(elements) <= _MOST_ELEMENTS:
            raise InputError(source, f"{_ELEMENTS}: has shape {list(elements.shape)}, not [N, 3]")
        if not elements.isfinite().all():
            raise InputError(source, f"{_ELEMENTS}: has non-finite values")
        panel = Panel(elements, geometry.wavelength)
        check_spacing(panel)
        return spec, panel, Volume(*geometry.volume)
    except InputError as error:
        raise error if error.field == source else InputError(source, str(error)) from None
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            source, f"the metadata do not describe a network of this version ({reason_of(error)})"
        ) from None


def _check_size(source: str, spec: NetworkSpec, grid: SearchGrid, tensors: Mapping[str, Tensor]) -> None:
    """Refuse sizes of a network that the tensors of the file cannot have, before it is built."""
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
    """Copy weights into a network."""
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
    """Check that weights are for a panel."""
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
