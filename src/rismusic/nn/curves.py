"""Learning curves: TensorBoard events and a figure, both from the lines of the run log."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rismusic.errors import InputError
from rismusic.files import writing
from rismusic.nn.run_folder import CURVES, RunFolder
from rismusic.plots import COLOURS, new_axes, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class TensorBoardLog:
    """Writes the numbers of the run log as TensorBoard events.

    Args:
        folder: run folder; the events go to its subfolder ``tensorboard``.
        steps_per_epoch: optimizer steps per epoch.
        begin: steps done before. Later events of an interrupted training are purged.

    Raises:
        InputError: TensorBoard is not installed, or the folder is not writable.
    """

    def __init__(self, folder: Path, steps_per_epoch: int, begin: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError(
                "tensorboard", "TensorBoard is not installed; pip install 'rismusic[tensorboard]'"
            ) from None
        self._folder, self._steps = folder / "tensorboard", steps_per_epoch
        self._step = begin
        with writing(self._folder):
            # Events at the purge step itself are purged too.
            self._writer = SummaryWriter(str(self._folder), purge_step=begin + 1 if begin else None)

    def __call__(self, record: dict[str, object]) -> None:
        """Write one log line. Step numbers count over all epochs."""
        if record["kind"] == "step":
            self._step = int(str(record["epoch"])) * self._steps + int(str(record["step"])) + 1
        with writing(self._folder):
            self._write("/".join(str(record[key]) for key in ("kind", "tag") if key in record), record)
            if record["kind"] == "epoch":
                self._writer.flush()

    def close(self) -> None:
        """Flush and close the files."""
        with writing(self._folder):
            self._writer.close()

    def _write(self, name: str, value: object) -> None:
        if isinstance(value, Mapping):
            for part, content in value.items():
                if part not in ("kind", "epoch", "step", "tag", "findings"):
                    self._write(f"{name}/{part}", content)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            self._writer.add_scalar(name, value, self._step)


def plot_losses(epochs: Sequence[dict[str, Any]], *, ax: Axes | None = None) -> Axes:
    """Total training and validation loss over the epochs.

    Args:
        epochs: log lines of kind ``epoch``.
        ax: axes to draw into; new ones by default.
    """
    curves = {
        "training": [line["training"].get("loss") for line in epochs],
        "validation": [line["validation"]["loss"] for line in epochs],
    }
    return _draw(epochs, curves, ax, ylabel="loss (weighted sum)", ylim=(0, None))


def plot_terms(epochs: Sequence[dict[str, Any]], *, ax: Axes | None = None) -> Axes:
    """Each validation loss, without its weight, over the epochs; see :func:`plot_losses`."""
    curves = {
        name.replace("_", " "): [line["validation"]["terms"].get(name) for line in epochs]
        for name in epochs[-1]["validation"]["terms"]
    }
    ax = _draw(epochs, curves, ax, ylabel="validation losses (unweighted)", yscale="log")
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return ax


def plot_scores(epochs: Sequence[dict[str, Any]], *, ax: Axes | None = None) -> Axes:
    """Share of sources located, and of scenes with the right number of sources; see :func:`plot_losses`."""
    scores = [line["validation"]["scores"] for line in epochs]
    curves = {
        r"sources located, MUSIC on R$_{blend}$": [_percent(one["blend"]["recall"]) for one in scores],
        r"sources located, MUSIC on R$_{pred}$": [_percent(one["predicted"]["recall"]) for one in scores],
        "number of sources right": [_percent(one["predicted"]["count_right"]) for one in scores],
    }
    return _draw(epochs, curves, ax, ylabel="share / %", ylim=(0, 100))


def save_curves(run: RunFolder, log: Callable[[str], None]) -> None:
    """Save the learning curves in the run folder. Without matplotlib, only log that there is no figure.

    Args:
        run: the run folder.
        log: called with the message.
    """
    try:
        epochs: list[dict[str, Any]] = run.records("epoch")
        if not epochs:
            return
        axes = new_axes(None, None, None, size=(15.0, 4.0))
        for draw, ax in zip((plot_losses, plot_terms, plot_scores), axes, strict=True):
            draw(epochs, ax=ax)
        save(axes[0], run.folder / CURVES, overwrite=True)
    except InputError as error:
        log(f"no plot: {error}")


def _number(value: float | str | None) -> float:
    """A number of the log: a string if it is not finite, none if every step was skipped."""
    return math.nan if value is None else float(value)


def _percent(share: float | str | None) -> float:
    return 100 * _number(share)


def _draw(
    epochs: Sequence[dict[str, Any]],
    curves: Mapping[str, Sequence[float | str | None]],
    ax: Axes | None,
    **settings: Any,
) -> Axes:
    """Draw named curves over the epochs, with a grid and a legend."""
    ax = ax or new_axes(None)[0]
    at = [line["epoch"] + 1 for line in epochs]
    for number, (name, values) in enumerate(curves.items()):
        style, colour = ("-", "--", ":")[number // len(COLOURS)], COLOURS[number % len(COLOURS)]
        ax.plot(at, [_number(value) for value in values], style, c=colour, label=name)
    ax.set(xlabel="epoch", **settings)
    ax.grid(which="both", alpha=0.3)
    ax.locator_params(axis="x", integer=True)
    ax.legend(frameon=False, fontsize="small")
    return ax
