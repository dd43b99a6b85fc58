"""Monitoring of a training: probes, which are measurements with limits and advice, and learning curves.

Each probe writes one record to the run log and one line to the console:

========== =====================================================================================
[LR]       learning rate of each parameter group
[GRADPATH] gradient from R_blend to the two factors
[GRAD]     parameters without a gradient
[OPT]      size of the parameter updates
[STEP]     gradient norms, clipped and skipped steps (the log has every step as well)
[VAL]      validation, see :func:`rismusic.nn.validation.report`
[LOSS]     the loss before the first step; each loss with its weight
[BETA]     share of R_samp in R_blend
========== =====================================================================================

Learning curves are TensorBoard events and a figure, both from the lines of the run log.

:func:`overfit_one_batch` is the quickest test of a training: a few steps must lower the loss of one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rismusic.errors import InputError, not_installed
from rismusic.files import writing
from rismusic.io import Recording
from rismusic.nn.checkpoint import State
from rismusic.nn.data import TrainingScenes, beta_at, weights_at
from rismusic.nn.learner import GROUPS, Learner, finite
from rismusic.nn.losses import check_start
from rismusic.nn.run_folder import CURVES, RunFolder
from rismusic.nn.spec import TermName, TrainSpec
from rismusic.plots import COLOURS, decorated, new_axes, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Finding:
    """A measured value with its limit, and what a value outside the limit means.

    The advice is empty if the meaning says what to do; ``where`` is the function or line to look at first.
    """

    name: str
    value: float
    threshold: float
    fine: bool
    meaning: str
    advice: str
    where: str = ""

    @property
    def sentence(self) -> str:
        """The finding as text."""
        where = f" Look at {self.where}." if self.where else ""
        limit = f"(limit {self.threshold:.3g})"
        return f"{self.name} = {self.value:.3g} {limit}: {self.meaning} {self.advice}".rstrip() + where


@dataclass(frozen=True)
class Report:
    """The findings of one probe, with a short summary and all measured numbers by name."""

    tag: str
    text: str
    values: Mapping[str, float]
    findings: tuple[Finding, ...] = ()

    @property
    def wrong(self) -> list[Finding]:
        """Findings outside their limits."""
        return [finding for finding in self.findings if not finding.fine]

    @property
    def lines(self) -> list[str]:
        """Lines for the console."""
        return [f"[{self.tag}] {self.text}", *(f"[{self.tag}] ! {one.sentence}" for one in self.wrong)]

    def record(self, epoch: int) -> dict[str, object]:
        """The record for the run log."""
        findings = [asdict(finding) for finding in self.findings]
        return {"kind": "probe", "tag": self.tag, "epoch": epoch, **self.values, "findings": findings}


def at_least(
    name: str, value: float, threshold: float, meaning: str, advice: str = "", where: str = ""
) -> Finding:
    """A finding that is fine at the threshold and above; NaN is not."""
    return Finding(name, value, threshold, value >= threshold, meaning, advice, where)


def at_most(
    name: str, value: float, threshold: float, meaning: str, advice: str = "", where: str = ""
) -> Finding:
    """A finding that is fine at the threshold and below; NaN is not."""
    return Finding(name, value, threshold, value <= threshold, meaning, advice, where)


def nonfinite_gradient_error(
    learner: Learner, scenes: TrainingScenes, record: Mapping[str, object], skipped: int
) -> InputError:
    """The error after too many skipped steps, which names what is not finite.

    The scenes of the skipped step are simulated again and searched with :func:`find_nonfinite`.
    """
    epoch, step = int(str(record["epoch"])), int(str(record["step"]))
    schedule = learner.spec.schedule
    beta = beta_at(schedule, epoch, learner.spec.seed)
    names = [
        name for batch in scenes.step(epoch, step) for name in find_nonfinite(learner, batch, epoch, beta)
    ]
    if not names:
        # The cause is in the scenes of another rank.
        weights = learner.spec.loss.weights
        names = [name for name, value in record.items() if name in weights and value - value != 0]  # type: ignore[operator]
    cause = ", ".join(dict.fromkeys(names)) or "no single loss (their sum or the weights overflow)"
    return InputError(
        "gradient",
        f"{skipped} steps were skipped because of non-finite gradients, more than skipped_max = "
        f"{learner.spec.skipped_max}; the last one at epoch {epoch}, step {step}. Lower the learning rates "
        f"or set precision = 'float32'. Not finite: {cause}",
    )


def find_nonfinite(learner: Learner, recording: Recording, epoch: int, beta: float) -> list[str]:
    """Names of what is not finite: the data, else the network's outputs, else losses or their gradients."""
    if bad := [f"{name} of the scenes" for name, fine in finite(recording).items() if not fine]:
        return bad
    prediction = learner.network(recording)
    if bad := [f"{name} of the network" for name, fine in finite(prediction).items() if not fine]:
        return bad
    spec = learner.spec
    weights = weights_at(spec.loss, spec.schedule, epoch, beta)
    trained = [weight for weight in learner.weights.values() if weight.requires_grad]
    for name, term in learner.prediction_losses(prediction, recording, beta, weights).terms.items():
        if not term.isfinite():
            bad.append(name)
        elif term.requires_grad:
            found = torch.autograd.grad(term, trained, retain_graph=True, allow_unused=True)
            if not all(gradient is None or bool(gradient.isfinite().all()) for gradient in found):
                bad.append(name)
    return bad


# Ratio of the factors' gradients below which the smaller one is a rounding error.
_MIN_GRADIENT_RATIO = 1e-7
# Losses that are never exactly 0 on simulated scenes.
_NEVER_ZERO = ("covariance", "covariance_predicted", "subspace", "heat_map", "count")


def learning_rate(learner: Learner) -> Report:
    """[LR]: the learning rates of the next step."""
    rates = {str(group["name"]): float(group["lr"]) for group in learner.optimizer.param_groups}
    findings = [
        at_least(
            f"learning rate of {name}",
            rate,
            1e-12,
            "the parameters do not change.",
            "Check the learning rates in the settings; the schedule never returns 0.",
        )
        for name, rate in rates.items()
    ]
    return Report(
        "LR", ", ".join(f"{name} {rate:.2e}" for name, rate in rates.items()), rates, tuple(findings)
    )


def gradients(
    learner: Learner, recording: Recording, beta: float, weights: Mapping[TermName, float]
) -> list[Report]:
    """[GRADPATH] and [GRAD]: which outputs and parameters get a gradient. No gradient is accumulated."""
    prediction = learner.network(recording)
    losses = learner.prediction_losses(prediction, recording, beta, weights)
    factors = {"angle_factor": prediction.angle_factor, "range_factor": prediction.range_factor}
    path = dict(zip(factors, _gradients(losses.terms["covariance"], list(factors.values())), strict=True))
    trained = {name: weight for name, weight in learner.weights.items() if weight.requires_grad}
    sizes = dict(zip(trained, _gradients(losses.total, list(trained.values())), strict=True))
    return [path_report(path), dead_report({name: sizes.get(name, 0.0) for name in learner.weights})]


def path_report(path: Mapping[str, float]) -> Report:
    """[GRADPATH], from the gradient norms of the loss of R_blend with respect to the factors."""
    most = max(path.values()) or 1.0
    findings = [
        at_least(
            f"gradient of the R_blend loss with respect to {name} over the larger one",
            size / most,
            _MIN_GRADIENT_RATIO,
            f"{name} gets no gradient from R_blend.",
            "Check that it is not detached or multiplied by zero, and that beta is below 1.",
        )
        for name, size in path.items()
    ]
    text = ", ".join(f"{name} {size:.2e}" for name, size in path.items())
    return Report("GRADPATH", f"covariance -> {text}", path, tuple(findings))


def dead_report(sizes: Mapping[str, float]) -> Report:
    """[GRAD], from the gradient norm of each parameter, 0 for none."""
    dead = [name for name, size in sizes.items() if size == 0]
    finding = at_most(
        "parameters without a gradient",
        float(len(dead)),
        0.0,
        f"these parameters do not learn: {', '.join(dead[:6])}{', ...' if len(dead) > 6 else ''}.",
        "Check for frozen heads, unused outputs, and outputs whose only loss has weight 0.",
    )
    text = f"{len(dead)} of {len(sizes)} parameters without a gradient"
    return Report("GRAD", text, {"without": float(len(dead)), "parameters": float(len(sizes))}, (finding,))


def first_loss(loss: float) -> Report:
    """[LOSS]: the total loss before the first step."""
    finding = at_most(
        "loss before the first step",
        loss,
        100.0,
        "the losses are normalised to order 1.",
        "Check the normalisation of the terms, and that the inputs are finite.",
    )
    return Report("LOSS", f"{loss:.4f} before the first step", {"first": loss}, (finding,))


def copy_parameters(learner: Learner) -> dict[str, Tensor]:
    """A copy of the parameters, for :func:`parameter_updates`."""
    return {name: weight.detach().clone() for name, weight in learner.weights.items()}


def parameter_updates(learner: Learner, before: Mapping[str, Tensor], rates: Mapping[str, float]) -> Report:
    """[OPT]: sizes of the parameter updates of a step.

    Adam changes each value by about the learning rate, so the root mean square change is measured in units of
    it. ``before`` is the result of :func:`copy_parameters` before the step, ``rates`` the learning rate of
    each group in it.
    """
    group_of = {
        id(parameter): str(group["name"])
        for group in learner.optimizer.param_groups
        for parameter in group["params"]
    }
    moved = torch.stack([(learner.weights[name] - old).detach().norm() for name, old in before.items()])
    expected = torch.tensor(
        [rates[group_of[id(learner.weights[name])]] * math.sqrt(old.numel()) for name, old in before.items()]
    )
    moved = moved.cpu()
    relative = torch.where(expected > 0, moved / torch.where(expected > 0, expected, 1), 0.0)
    values = {
        "median": float(moved.median()),
        "max": float(moved.max()),
        "max_single": float(
            torch.stack([(learner.weights[n] - old).detach().abs().max() for n, old in before.items()]).max()
        ),
        "median_over_rate": float(relative.median()),
        "max_over_rate": float(relative.max()),
        "unmoved": float((moved == 0).sum()),
    }
    findings = (
        at_least(
            "median parameter update over the learning rate",
            values["median_over_rate"],
            1e-3,
            "the optimizer hardly changes the parameters.",
            "Check for a skipped step, a tiny clip_norm, or a learning rate of 0.",
        ),
        at_most(
            "largest parameter update over the learning rate",
            values["max_over_rate"],
            20.0,
            "the update is much larger than the learning rate.",
            "Check that the optimizer state belongs to this training.",
        ),
    )
    text = (
        f"L2 norm of the update of a parameter tensor: median {values['median']:.2e}, "
        f"largest {values['max']:.2e}; largest change of a single number {values['max_single']:.2e}"
    )
    return Report("OPT", text, values, findings)


def steps(state: State, clip_norm: float) -> Report:
    """[STEP]: gradient norms, and clipped and skipped steps of an epoch."""
    done, taken = max(1, state.step), state.sums.get("taken", 0.0)
    totals = {name: state.sums.get(f"gradient{name}", math.nan) for name in ("", "_backbone", "_head")}
    means = {name: total / taken if taken else math.nan for name, total in totals.items()}
    lost = 1 - taken / done
    values = {
        "gradient": means[""],
        **{f"gradient_{group}": means[f"_{group}"] for group in GROUPS},
        "clipped": state.clipped / done,
        "skipped": lost,
        "skipped_in_all": float(state.skipped),
    }
    findings = (
        at_most(
            "share of steps with a clipped gradient",
            values["clipped"],
            0.5,
            f"clip_norm = {clip_norm:g} is below the typical gradient norm, so most steps are shortened.",
            "Raise clip_norm to a few times the mean gradient norm.",
        ),
        at_most(
            "share of skipped steps",
            lost,
            0.01,
            "losses or gradients are not finite.",
            "Lower the learning rates or set precision = 'float32'. After skipped_max steps the training "
            "stops with the cause.",
        ),
    )
    text = (
        f"gradient {means['']:.3g} (backbone {means['_backbone']:.3g}, head {means['_head']:.3g}), "
        f"clipped {values['clipped']:.0%}, skipped {lost:.0%}"
    )
    return Report("STEP", text, values, findings)


def losses(terms: Mapping[str, float], weights: Mapping[TermName, float]) -> Report:
    """[LOSS]: means of the losses over an epoch, with their weights."""
    values = {name: value for name, value in terms.items() if name in weights}
    shares = {name: weights[name] * value for name, value in values.items()}  # type: ignore[index]
    total = sum(shares.values())
    findings: list[Finding] = [
        at_least(
            f"loss {name}",
            value,
            1e-9,
            "the loss is 0 on every scene, which cannot be right.",
            "Check for degrees in place of radians, and for the truth used as the prediction.",
        )
        for name, value in values.items()
        if name in _NEVER_ZERO
    ]
    findings.append(
        at_least(
            "share of the covariance in the total loss",
            shares.get("covariance", 0.0) / total if total else math.nan,
            0.02,
            "the other losses dominate the covariance loss.",
            f"Lower the weight of the largest term, {max(shares, key=shares.__getitem__, default='none')}.",
        )
    )
    text = "  ".join(f"{name} {value:.3f}x{weights[name]:g}" for name, value in values.items())  # type: ignore[index]
    weighted = {f"weight_{name}": float(weights[name]) for name in values}  # type: ignore[index]
    return Report("LOSS", text, {**values, **weighted}, tuple(findings))


def beta(value: float) -> Report:
    """[BETA]: the share of R_samp in R_blend."""
    finding = at_most("beta", value, 0.999, "R_blend does not contain R_pred.", "Set schedule.beta below 1.")
    return Report("BETA", f"{value:.3f}", {"beta": value}, (finding,))


def _gradients(loss: Tensor, inputs: list[Tensor]) -> list[float]:
    """Norms of the gradient of a loss with respect to each input, 0 if there is none."""
    trained = [value for value in inputs if value.requires_grad]
    if not trained or not loss.requires_grad:
        return [0.0] * len(inputs)
    gradients = iter(torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True))
    norms = []
    for value in inputs:
        gradient = next(gradients) if value.requires_grad else None
        norms.append(0.0 if gradient is None else float(gradient.norm()))
    return norms


MIN_DECREASE = 0.2
"""Relative decrease of the loss that :func:`overfit_one_batch` must reach."""


@dataclass(frozen=True)
class OverfitResult:
    """Total loss of one batch at beta = 0 before and after a few steps."""

    before: float
    after: float

    @property
    def decrease(self) -> float:
        """Relative decrease of the loss."""
        return 1 - self.after / self.before

    @property
    def passed(self) -> bool:
        """Whether the loss decreased enough."""
        return self.decrease >= MIN_DECREASE


def overfit_one_batch(
    spec: TrainSpec,
    *,
    steps: int = 5,
    make: Callable[[TrainSpec], tuple[Learner, TrainingScenes]] = lambda spec: (
        Learner(spec),
        TrainingScenes(spec),
    ),
) -> OverfitResult:
    """Take a few steps on the first batch at the full learning rates, with beta rising from 0 to 0.3.

    The loss is that of the current (not averaged) weights at beta = 0, with the weights of the settings. The
    schedule of the settings is ignored.
    """
    constant = spec.schedule.replace(epochs=1, warm_up=0.0, learning_rate_floor=1.0, curriculum=False)
    spec = spec.replace(schedule=constant, accumulation=1, scenes_per_epoch=steps * spec.batch)
    learner, scenes = make(spec)
    recording = next(scenes.step(0, 0))
    weights = spec.loss.weights
    prediction = learner.network(recording)
    losses = learner.prediction_losses(prediction, recording, 0.0, weights)
    check_start(losses, prediction)
    for step in range(steps):
        learner.step([recording], 0.3 * step / max(1, steps - 1), weights)
    after = learner.losses(recording, 0.0, weights)
    return OverfitResult(float(losses.total.detach()), float(after.total.detach()))


class TensorBoardLog:
    """Writes the numbers of the run log as TensorBoard events.

    They go to the subfolder ``tensorboard`` of the run. Events of an interrupted training after the first
    ``begin`` steps are purged.
    """

    def __init__(self, folder: Path, steps_per_epoch: int, begin: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise not_installed("tensorboard", "tensorboard", "TensorBoard ") from None
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
    """Total training and validation loss over the epochs."""
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
    """Save the learning curves in the run folder. Without matplotlib, only log that there is no figure."""
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
    at = [line["epoch"] for line in epochs]
    for number, (name, values) in enumerate(curves.items()):
        style, colour = ("-", "--", ":")[number // len(COLOURS)], COLOURS[number % len(COLOURS)]
        ax.plot(at, [_number(value) for value in values], style, c=colour, label=name)
    ax.set(xlabel="epoch", **settings)
    return decorated(ax, integers=True)
