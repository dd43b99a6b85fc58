"""What was found while a network learned, and what it means.

Who is to blame where gradients are not finite.

What is looked at in every epoch, on by default: each probe measures, and says what is wrong and why.

One line each in the log, and a short one on the console:

========== =====================================================================================
[LR]       learning rate of each group
[GRADPATH] gradient from R_blend to the two factors
[GRAD]     parameters without a gradient
[OPT]      how far a step moves the parameters
[STEP]     norms of the gradient, steps clipped and skipped (each step is in the log as well)
[VAL]      validation, see :func:`rismusic.nn.validation.report`
[LOSS]     the loss before the first step; each term with its weight
[BETA]     share of R_samp in R_blend
========== =====================================================================================

The quickest test of a training: do a few steps on one batch bring the loss of that batch down?
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from rismusic.errors import InputError
from rismusic.io import Recording
from rismusic.nn.checkpoint import State
from rismusic.nn.data import TrainingScenes
from rismusic.nn.learner import GROUPS, Learner, finite
from rismusic.nn.losses import check_start
from rismusic.nn.schedules import beta_at, weights_at
from rismusic.nn.spec import TermName, TrainSpec


@dataclass(frozen=True)
class Finding:
    """A number and what to make of it.

    Args:
        name: what was measured.
        value: what came of it.
        threshold: what it should not pass.
        fine: whether it did not.
        meaning: what it means where it did: a sentence.
        advice: what to try then: a sentence.
    """

    name: str
    value: float
    threshold: float
    fine: bool
    meaning: str
    advice: str

    @property
    def sentence(self) -> str:
        """For people."""
        return f"{self.name} = {self.value:.3g} (limit {self.threshold:.3g}): {self.meaning} {self.advice}"


@dataclass(frozen=True)
class Report:
    """The findings of one probe.

    Args:
        tag: LR, GRADPATH, GRAD, OPT, STEP, VAL, LOSS or BETA.
        text: a short line.
        values: all numbers, by name.
        findings: what some of them mean.
    """

    tag: str
    text: str
    values: Mapping[str, float]
    findings: tuple[Finding, ...] = ()

    @property
    def wrong(self) -> list[Finding]:
        """Findings that are not fine."""
        return [finding for finding in self.findings if not finding.fine]

    @property
    def lines(self) -> list[str]:
        """What is said on the console."""
        return [f"[{self.tag}] {self.text}", *(f"[{self.tag}] ! {one.sentence}" for one in self.wrong)]

    def record(self, epoch: int) -> dict[str, object]:
        """The line of the log."""
        findings = [asdict(finding) for finding in self.findings]
        return {"kind": "probe", "tag": self.tag, "epoch": epoch, **self.values, "findings": findings}


def at_least(name: str, value: float, threshold: float, meaning: str, advice: str) -> Finding:
    """Fine at the threshold and above; NaN is not."""
    return Finding(name, value, threshold, value >= threshold, meaning, advice)


def at_most(name: str, value: float, threshold: float, meaning: str, advice: str) -> Finding:
    """Fine at the threshold and below; NaN is not."""
    return Finding(name, value, threshold, value <= threshold, meaning, advice)


def nonfinite_error(
    learner: Learner, scenes: TrainingScenes, record: Mapping[str, object], skipped: int
) -> InputError:
    """What to raise after too many skipped steps: what is not finite, by name.

    The scenes of the skipped step are made again: their data are looked at, then the outputs of the network,
    then each loss and its gradient by itself.

    Args:
        learner: as it is now.
        scenes: the training's.
        record: what was logged of the step.
        skipped: steps that were.
    """
    epoch, step = int(str(record["epoch"])), int(str(record["step"]))
    schedule = learner.spec.schedule
    beta = beta_at(schedule, epoch, learner.spec.seed)
    guilty = [
        name for each in scenes.step(epoch, step) for name in nonfinite_parts(learner, each, epoch, beta)
    ]
    if not guilty:
        # Something of another process's share.
        weights = learner.spec.loss.weights
        guilty = [name for name, value in record.items() if name in weights and value - value != 0]  # type: ignore[operator]
    who = ", ".join(dict.fromkeys(guilty)) or "no loss by itself (the sum, or the weights, overflow)"
    return InputError(
        "gradient",
        f"finite values in all but skipped_max = {learner.spec.skipped_max} steps",
        f"{skipped} steps skipped, the last at epoch {epoch}, step {step}; not finite: {who}",
    )


def nonfinite_parts(learner: Learner, recording: Recording, epoch: int, beta: float) -> list[str]:
    """What is not finite of the data, else of the network's outputs, else of the losses and their gradients.

    Args:
        learner: as it is now.
        recording: a batch.
        epoch: whose weights of the losses are taken.
        beta: share of R_samp.
    """
    if bad := [f"{name} of the scenes" for name, fine in finite(recording).items() if not fine]:
        return bad
    prediction = learner.network(recording)
    if bad := [f"{name} of the network" for name, fine in finite(prediction).items() if not fine]:
        return bad
    spec = learner.spec
    weights = weights_at(spec.loss, spec.schedule, epoch, beta)
    trained = [weight for weight in learner.weights.values() if weight.requires_grad]
    for name, term in learner.judged(prediction, recording, beta, weights).terms.items():
        if not term.isfinite():
            bad.append(name)
        elif term.requires_grad:
            found = torch.autograd.grad(term, trained, retain_graph=True, allow_unused=True)
            if not all(gradient is None or bool(gradient.isfinite().all()) for gradient in found):
                bad.append(name)
    return bad


# Smallest share of the larger factor's gradient that is more than rounding.
_PATH = 1e-7
# Losses that are never exactly 0 on real scenes.
_NEVER_ZERO = ("covariance", "covariance_predicted", "subspace", "heat_map", "count")


def learning_rate(learner: Learner) -> Report:
    """[LR]: the learning rates of the next step."""
    rates = {str(group["name"]): float(group["lr"]) for group in learner.optimizer.param_groups}
    findings = [
        at_least(
            f"learning rate of {name}",
            rate,
            1e-12,
            "nothing is learned.",
            "Look at the learning rates in the settings; the schedule never gives 0.",
        )
        for name, rate in rates.items()
    ]
    return Report(
        "LR", ", ".join(f"{name} {rate:.2e}" for name, rate in rates.items()), rates, tuple(findings)
    )


def gradients(
    learner: Learner, recording: Recording, beta: float, weights: Mapping[TermName, float]
) -> list[Report]:
    """[GRADPATH] and [GRAD]: where the gradient arrives, on a few scenes of their own.

    Nothing is left behind: no gradient is accumulated.
    """
    prediction = learner.network(recording)
    losses = learner.judged(prediction, recording, beta, weights)
    factors = {"angle_factor": prediction.angle_factor, "range_factor": prediction.range_factor}
    path = dict(zip(factors, _gradients(losses.terms["covariance"], list(factors.values())), strict=True))
    trained = {name: weight for name, weight in learner.weights.items() if weight.requires_grad}
    sizes = dict(zip(trained, _gradients(losses.total, list(trained.values())), strict=True))
    return [path_report(path), dead_report({name: sizes.get(name, 0.0) for name in learner.weights})]


def path_report(path: Mapping[str, float]) -> Report:
    """[GRADPATH]: from norms of the gradient of the loss of R_blend by each factor."""
    most = max(path.values()) or 1.0
    findings = [
        at_least(
            f"gradient of R_blend's loss by the {name}, over that of the other",
            size / most,
            _PATH,
            f"the {name} cannot learn from R_blend.",
            "Is it detached, is beta 1, or is it multiplied by zero?",
        )
        for name, size in path.items()
    ]
    text = ", ".join(f"{name} {size:.2e}" for name, size in path.items())
    return Report("GRADPATH", f"covariance -> {text}", path, tuple(findings))


def dead_report(sizes: Mapping[str, float]) -> Report:
    """[GRAD]: from norms of the gradient of each parameter, 0 for none."""
    dead = [name for name, size in sizes.items() if size == 0]
    finding = at_most(
        "parameters without a gradient",
        float(len(dead)),
        0.0,
        f"these do not learn: {', '.join(dead[:6])}{', ...' if len(dead) > 6 else ''}.",
        "Is a head frozen, a loss of weight 0 its only teacher, or its output unused?",
    )
    text = f"{len(dead)} of {len(sizes)} parameters without a gradient"
    return Report("GRAD", text, {"without": float(len(dead)), "parameters": float(len(sizes))}, (finding,))


def first_loss(loss: float) -> Report:
    """[LOSS]: the total before the first step."""
    finding = at_most(
        "loss before the first step",
        loss,
        100.0,
        "the losses are of order 1 by their making.",
        "Is a term not normalised, or an input not finite?",
    )
    return Report("LOSS", f"{loss:.4f} before the first step", {"first": loss}, (finding,))


def snapshot(learner: Learner) -> dict[str, Tensor]:
    """The parameters as they are, for :func:`change`."""
    return {name: weight.detach().clone() for name, weight in learner.weights.items()}


def change(learner: Learner, before: Mapping[str, Tensor], rates: Mapping[str, float]) -> Report:
    """[OPT]: what a step did to the parameters.

    The optimizer moves each number by about its learning rate, so the root mean square of the change is
    measured in units of it.

    Args:
        learner: after the step.
        before: :func:`snapshot` before it.
        rates: learning rate of each group in that step.
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
        "median_over_rate": float(relative.median()),
        "max_over_rate": float(relative.max()),
        "unmoved": float((moved == 0).sum()),
    }
    findings = (
        at_least(
            "median change of a parameter, over its learning rate",
            values["median_over_rate"],
            1e-3,
            "the optimizer hardly moves anything.",
            "Was the step skipped, the gradient clipped to nothing, or the learning rate 0?",
        ),
        at_most(
            "largest change of a parameter, over its learning rate",
            values["max_over_rate"],
            20.0,
            "a step is far longer than the learning rate says.",
            "Is the optimizer's memory that of another training?",
        ),
    )
    text = f"change of a parameter: median {values['median']:.2e}, max {values['max']:.2e}"
    return Report("OPT", text, values, findings)


def steps(state: State, clip_norm: float) -> Report:
    """[STEP]: the steps of an epoch."""
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
            f"clip_norm = {clip_norm:g} lies below the usual gradient norm, so steps lose their size.",
            "Raise clip_norm to a few times the mean norm.",
        ),
        at_most(
            "share of skipped steps",
            lost,
            0.01,
            "losses or gradients that are not finite.",
            "Lower the learning rates, or use precision = 'float32'; past skipped_max steps the "
            "cause is named.",
        ),
    )
    text = (
        f"gradient {means['']:.3g} (backbone {means['_backbone']:.3g}, head {means['_head']:.3g}), "
        f"clipped {values['clipped']:.0%}, skipped {lost:.0%}"
    )
    return Report("STEP", text, values, findings)


def losses(terms: Mapping[str, float], weights: Mapping[TermName, float]) -> Report:
    """[LOSS]: means of the terms over an epoch, with their weights."""
    values = {name: value for name, value in terms.items() if name in weights}
    shares = {name: weights[name] * value for name, value in values.items()}  # type: ignore[index]
    total = sum(shares.values())
    findings: list[Finding] = [
        at_least(
            f"loss {name}",
            value,
            1e-9,
            "it is 0 on every scene, which no real scene gives.",
            "Is it fed degrees for radians, or the truth itself?",
        )
        for name, value in values.items()
        if name in _NEVER_ZERO
    ]
    findings.append(
        at_least(
            "share of the covariance in the total loss",
            shares.get("covariance", 0.0) / total if total else math.nan,
            0.02,
            "other losses drown what is to be learned.",
            "Lower the weight of the largest term, "
            f"{max(shares, key=shares.__getitem__) if shares else 'none'}.",
        )
    )
    text = "  ".join(f"{name} {value:.3f}x{weights[name]:g}" for name, value in values.items())  # type: ignore[index]
    weighted = {f"weight_{name}": float(weights[name]) for name in values}  # type: ignore[index]
    return Report("LOSS", text, {**values, **weighted}, tuple(findings))


def beta(value: float) -> Report:
    """[BETA]: the share of R_samp."""
    finding = at_most("beta", value, 0.999, "R_pred has no part in R_blend.", "Lower schedule.beta below 1.")
    return Report("BETA", f"{value:.3f}", {"beta": value}, (finding,))


def _gradients(of: Tensor, by: list[Tensor]) -> list[float]:
    """Norms of the gradient; 0 where there is none."""
    wanted = [value for value in by if value.requires_grad]
    if not wanted or not of.requires_grad:
        return [0.0] * len(by)
    found = iter(torch.autograd.grad(of, wanted, retain_graph=True, allow_unused=True))
    sizes = []
    for value in by:
        gradient = next(found) if value.requires_grad else None
        sizes.append(0.0 if gradient is None else float(gradient.norm()))
    return sizes


LEAST_FALL = 0.2
"""Share of the loss that is to go."""


@dataclass(frozen=True)
class Litmus:
    """Loss of one batch at beta = 0, before and after.

    Args:
        before: total loss.
        after: total loss.
    """

    before: float
    after: float

    @property
    def fall(self) -> float:
        """Share of the loss that has gone."""
        return 1 - self.after / self.before

    @property
    def passed(self) -> bool:
        """Whether that is enough."""
        return self.fall >= LEAST_FALL


def litmus(
    spec: TrainSpec,
    *,
    steps: int = 5,
    beta: float = 0.3,
    make: Callable[[TrainSpec], tuple[Learner, TrainingScenes]] = lambda spec: (
        Learner(spec),
        TrainingScenes(spec),
    ),
) -> Litmus:
    """Take a few steps on the first batch, beta rising from 0, at the full learning rates.

    The loss is that of the network's own weights, all terms with the weights of the settings, at beta = 0.

    Args:
        spec: settings; those of the schedule count for nothing here.
        steps: optimizer steps.
        beta: at the last of them.
        make: what makes the learner and its scenes.
    """
    constant = spec.schedule.replace(epochs=1, warm_up=0.0, learning_rate_floor=1.0)
    spec = spec.replace(schedule=constant, accumulation=1, scenes_per_epoch=steps * spec.batch)
    learner, scenes = make(spec)
    recording = next(scenes.step(0, 0))
    weights = spec.loss.weights
    prediction = learner.network(recording)
    losses = learner.judged(prediction, recording, 0.0, weights)
    check_start(losses, prediction)
    for step in range(steps):
        learner.step([recording], beta * step / max(1, steps - 1), weights)
    after = learner.losses(recording, 0.0, weights)
    return Litmus(float(losses.total.detach()), float(after.total.detach()))
