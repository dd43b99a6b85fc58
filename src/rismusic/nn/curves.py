"""The numbers of a training for TensorBoard, where it is installed.

Curves of a training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rismusic.errors import InputError
from rismusic.nn.run_folder import CURVES, RunFolder, writing
from rismusic.plots import COLOURS, new_axes, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class TensorBoardLog:
    """Takes lines of the log and hands their numbers on.

    Args:
        folder: of the run; TensorBoard's files go to ``tensorboard`` in it.
        steps_per_epoch: of the training, by which numbers have their place.
        begin: steps done before; what an interrupted training has shown of later ones is hidden.

    Raises:
        InputError: TensorBoard is not installed, or the folder cannot be written to.
    """

    def __init__(self, folder: Path, steps_per_epoch: int, begin: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError(
                "tensorboard", "TensorBoard (pip install 'rismusic[tensorboard]')", "none"
            ) from None
        self._folder, self._steps = folder / "tensorboard", steps_per_epoch
        self._step = begin
        with writing(self._folder):
            # An event at the step of the purge is hidden too.
            self._writer = SummaryWriter(str(self._folder), purge_step=begin + 1 if begin else None)

    def __call__(self, record: dict[str, object]) -> None:
        """Numbers of a step are at the count of steps; those of an epoch where the epoch ends."""
        if record["kind"] == "step":
            self._step = int(str(record["epoch"])) * self._steps + int(str(record["step"])) + 1
        with writing(self._folder):
            self._write("/".join(str(record[key]) for key in ("kind", "tag") if key in record), record)
            if record["kind"] == "epoch":
                self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        with writing(self._folder):
            self._writer.close()

    def _write(self, name: str, value: object) -> None:
        if isinstance(value, Mapping):
            for part, held in value.items():
                if part not in ("kind", "epoch", "step", "tag", "findings"):
                    self._write(f"{name}/{part}", held)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            self._writer.add_scalar(name, value, self._step)


def plot_losses(epochs: Sequence[dict[str, Any]], *, ax: Axes | None = None) -> Axes:
    """Total loss in training and validation over the epochs.

    Args:
        epochs: lines of the log, one an epoch.
        ax: axes to draw into.
    """
    ax = ax or new_axes(None)[0]
    at = [line["epoch"] + 1 for line in epochs]
    ax.plot(at, [_number(line["training"].get("loss")) for line in epochs], c=COLOURS[0], label="training")
    ax.plot(at, [_number(line["validation"]["loss"]) for line in epochs], c=COLOURS[1], label="validation")
    ax.set(xlabel="epoch", ylabel="loss (weighted sum)", ylim=(0, None))
    return _finished(ax)


def plot_terms(epochs: Sequence[dict[str, Any]], *, ax: Axes | None = None) -> Axes:
    """Each loss of the validation, without its weight.

    Args:
        epochs: lines of the log, one an epoch.
        ax: axes to draw into.
    """
    ax = ax or new_axes(None)[0]
    at = [line["epoch"] + 1 for line in epochs]
    for place, name in enumerate(epochs[-1]["validation"]["terms"]):
        style = ("-", "--", ":")[place // len(COLOURS)]
        values = [_number(line["validation"]["terms"].get(name)) for line in epochs]
        ax.plot(at, values, style, c=COLOURS[place % len(COLOURS)], label=name.replace("_", " "))
    ax.set(xlabel="epoch", ylabel="losses of the validation (without weights)", yscale="log")
    return _finished(ax, aside=True)


def plot_scores(epochs: Sequence[dict[str, Any]], *, ax: Axes | None = None) -> Axes:
    """Share of sources hit, and of scenes whose number of sources is right.

    Args:
        epochs: lines of the log, one an epoch.
        ax: axes to draw into.
    """
    ax = ax or new_axes(None)[0]
    at = [line["epoch"] + 1 for line in epochs]
    for place, (name, label) in enumerate((("blend", r"R$_{blend}$"), ("predicted", r"R$_{pred}$"))):
        scores = [line["validation"]["scores"][name] for line in epochs]
        ax.plot(
            at,
            [100 * _number(one["recall"]) for one in scores],
            c=COLOURS[place],
            label=f"hit, MUSIC on {label}",
        )
    ax.plot(
        at,
        [100 * _number(one["count_right"]) for one in scores],
        c=COLOURS[2],
        label="number of sources right",
    )
    ax.set(xlabel="epoch", ylabel="share / %", ylim=(0, 100))
    return _finished(ax)


def save_curves(run: RunFolder, say: Callable[[str], None]) -> None:
    """Draw a training into its folder; without matplotlib it says so and leaves it at that.

    Args:
        run: the folder.
        say: takes the sentence.
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
        say(f"no plot: {error}")


def _number(value: float | str | None) -> float:
    """What the log has: text for what is not finite, nothing where every step was skipped."""
    return math.nan if value is None else float(value)


def _finished(ax: Axes, *, aside: bool = False) -> Axes:
    """Grid, whole epochs, and a legend within the axes or, where there are many lines, aside of them."""
    ax.grid(which="both", alpha=0.3)
    ax.locator_params(axis="x", integer=True)
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if aside else {}
    ax.legend(frameon=False, fontsize="small", **place)
    return ax
