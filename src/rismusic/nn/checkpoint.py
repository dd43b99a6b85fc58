"""Atomic checkpoints of a training.

Tensors are written to a file with a new name. A small JSON file with the name of the tensor file is then
renamed into place: the new checkpoint replaces the old one at that moment, whatever happens before.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rismusic.errors import InputError
from rismusic.files import read_beginning, read_small, replace_file
from rismusic.nn.run_folder import SETTINGS, STATE, RunFolder
from rismusic.nn.spec import TrainSpec
from rismusic.records import Natural, Record, parse_record
from rismusic.spec import flat_settings
from rismusic.version import __version__

_FORMAT = "rismusic-training/1"
_TENSOR_FILE = r"^state-\d{4,20}-\d{7,20}\.safetensors$"


@dataclass
class State:
    """Progress of a training, without its tensors.

    Args:
        begun: whether the checks before the first step are done.
        epoch: current epoch, from 0.
        step: optimizer steps done in this epoch, including skipped ones.
        skipped: steps skipped because of non-finite gradients, in all epochs.
        clipped: steps of this epoch whose gradient was clipped.
        validation: validation loss of the last epoch.
        best: lowest validation loss so far.
        best_epoch: its epoch, or -1.
        sums: sum of each logged number over the steps of this epoch.
        stopped: whether the training is finished.
        scaler: state of the gradient scaler.
        log_bytes: length of the log.
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
    """Write a checkpoint and remove the previous one.

    Args:
        run: the run folder.
        settings: written to ``state.json``, to detect settings that were changed before resuming.
        state: written to ``state.json``.
        tensors: written to their own file.

    Raises:
        InputError: the disk is full or not writable; the previous checkpoint is kept.
    """
    name = _tensor_file(state)
    write_tensors(run.folder / name, tensors, {"format": _FORMAT})
    record = {
        "format": _FORMAT,
        "version": __version__,
        "tensors": name,
        "settings": settings.model_dump(mode="json"),
        "state": asdict(state),
    }
    with replace_file(run.folder / STATE, overwrite=True) as temporary:
        temporary.write_bytes((json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
    for old in run.folder.glob("state-*.safetensors"):
        if old.name != name and re.match(_TENSOR_FILE, old.name):
            old.unlink(missing_ok=True)


def load_checkpoint(run: RunFolder) -> tuple[State, dict[str, Tensor]] | None:
    """The checkpoint of a run folder, or none before the first one.

    Raises:
        InputError: the checkpoint is damaged or incomplete, or was written by another version or with other
            settings.
    """
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
    if metadata.get("format") != _FORMAT:
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
    """Name of the tensor file."""
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
    """Write tensors to a safetensors file atomically.

    Raises:
        InputError: the disk is full or not writable.
    """
    data = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata)
    with replace_file(path, overwrite=True) as temporary:
        temporary.write_bytes(data)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    The header is checked before the tensors are built: its size, and the types and the names in it.

    Raises:
        InputError: the file is missing or truncated, is not a safetensors file, is larger than 4 GiB, or has
            tensors of unusual types.
    """
    # The header first, so that a large file of another kind is not read as a whole.
    head = read_beginning(path, 8 + _LARGEST_HEADER)
    length = int.from_bytes(head[:8], "little")
    if not 2 <= length <= len(head) - 8:
        raise InputError(str(path), "is not a safetensors file, or it is truncated")
    header = parse_record(_Header, head[8 : 8 + length], str(path), "a safetensors file")
    data = read_small(path, limit=_LARGEST_TENSORS)
    try:
        return load(data), header.metadata
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(str(path), f"is not a safetensors file, or it is truncated ({error})") from None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer state as named tensors, ``<parameter number>.<name>``."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, values in state.items() for name, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Load the optimizer state that :func:`optimizer_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, _, key = name.partition(".")
        state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
