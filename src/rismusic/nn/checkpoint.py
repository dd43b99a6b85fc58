"""Checkpoints: all or nothing, whatever happens while one is written.

The tensors go to a file of a new name. Then a small JSON file, renamed into its place, says which file of
tensors holds: that is the moment at which the new checkpoint takes the old one's place.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from pydantic import ConfigDict, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rismusic.errors import InputError
from rismusic.files import replace_file
from rismusic.nn.run_folder import SETTINGS, STATE, RunFolder
from rismusic.nn.spec import TrainSpec
from rismusic.version import __version__

_FORMAT = "rismusic-training/1"


@dataclass
class State:
    """Where a training stands, but for its tensors.

    Args:
        begun: whether the first batch and validation have been looked at.
        epoch: the one at work, from 0.
        step: optimizer steps of this epoch that are done, taken or skipped.
        skipped: steps skipped for a gradient that was not finite, in all epochs.
        clipped: steps of this epoch whose gradient was clipped.
        validation: loss of the last epoch.
        best: lowest validation loss so far.
        best_epoch: its epoch, -1 before there is one.
        sums: over the steps of this epoch, of each logged number.
        stopped: whether nothing is left to do.
        scaler: of the gradient scaler.
        log_bytes: length of the log.
    """

    # As read from a file: no other fields, no other types.
    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    begun: bool = False
    epoch: int = 0
    step: int = 0
    skipped: int = 0
    clipped: int = 0
    validation: float | None = None
    best: float | None = None
    best_epoch: int = -1
    sums: dict[str, float] = field(default_factory=dict)
    stopped: bool = False
    scaler: dict[str, int | float] = field(default_factory=dict)
    log_bytes: int = 0


_STATE = TypeAdapter(State)


def save_checkpoint(run: RunFolder, settings: TrainSpec, state: State, tensors: dict[str, Tensor]) -> None:
    """Put a checkpoint in the place of the one that is there.

    Args:
        run: the folder.
        settings: go to ``state.json``, so that a training goes on with those that it was begun with.
        state: goes there too.
        tensors: go to a file of their own.

    Raises:
        InputError: the disk is full or refuses; the earlier checkpoint is as it was.
    """
    name = _tensors_of(state)
    write_tensors(run.folder / name, tensors, {"format": _FORMAT})
    record = {
        "format": _FORMAT,
        "version": __version__,
        "tensors": name,
        "settings": settings.model_dump(mode="json"),
        "state": asdict(state),
    }
    with replace_file(run.folder / STATE, overwrite=True) as temporary:
        write_safely(temporary, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
    for old in run.folder.glob("state-*.safetensors"):
        if old.name != name:
            old.unlink(missing_ok=True)
    for half in run.folder.glob(".*.part*"):
        half.unlink(missing_ok=True)


def load_checkpoint(run: RunFolder) -> tuple[State, dict[str, Tensor]] | None:
    """The checkpoint of a folder; none where there is none yet.

    Raises:
        InputError: files that are no checkpoint, or of another version or other settings, or damaged; the
            file that names the tensors is gone.
    """
    path = run.folder / STATE
    if not path.exists():
        if any(each.name != _tensors_of(State()) for each in run.folder.glob("state-*.safetensors")):
            raise InputError(str(path), "the state of the training in this folder", "no such file")
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != _FORMAT:
            raise KeyError("format")
        version, name, settings = record["version"], str(record["tensors"]), dict(record["settings"])
        state = _STATE.validate_json(json.dumps(record["state"]))
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(str(path), "the state of a training", "something else") from None
    if version != __version__:
        raise InputError(str(path), f"a training of this version, {__version__}", f"version {version}")
    _check_settings(run, settings)
    tensors, metadata = read_tensors(run.folder / name)
    if metadata.get("format") != _FORMAT:
        raise InputError(str(run.folder / name), "the tensors of a training", "other tensors")
    return state, tensors


def _tensors_of(state: State) -> str:
    """Name of the file of tensors."""
    return f"state-{state.epoch:04d}-{state.step:07d}.safetensors"


def _check_settings(run: RunFolder, begun_with: dict[str, object]) -> None:
    """Refuse settings that were changed after the training had begun.

    One that came later than that had the default, which leaves all as it was.
    """
    before = _flat(TrainSpec().model_dump(mode="json")) | _flat(begun_with)
    now = _flat(run.settings().model_dump(mode="json"))
    for name in dict.fromkeys((*before, *now)):
        if before.get(name) != now.get(name):
            raise InputError(
                str(run.folder / SETTINGS),
                f"{name} = {before.get(name)} as when the training was begun (for other settings begin a new "
                "one; start, --start, takes the weights along)",
                str(now.get(name)),
            )


def _flat(settings: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Settings by their dotted names."""
    found: dict[str, object] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors as safetensors; the file appears whole or not at all.

    Raises:
        InputError: the disk is full or refuses.
    """
    data = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata)
    with replace_file(path, overwrite=True) as temporary:
        write_safely(temporary, data)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        InputError: the file is missing, cut short, or no safetensors.
    """
    try:
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        tensors = load(data)
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except OSError as error:
        reason = (error.strerror or "an unreadable one").lower()
        raise InputError(str(path), "a readable file of weights", reason) from None
    except (SafetensorError, ValueError, KeyError, AttributeError):
        raise InputError(
            str(path), "a whole safetensors file", "a file that is cut short or something else"
        ) from None
    return tensors, metadata


def write_safely(path: Path, data: bytes) -> None:
    """Write, and wait until it is on the disk, so that a later rename cannot overtake it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's memory, by number of the parameter and name."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, held in state.items() for name, value in held.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give an optimizer the memory that :func:`optimizer_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, _, key = name.partition(".")
        state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
