"""Checks that watch the training loop itself: a short run of the trainer, and its steps computed again.

The trainer works on its own data and files. Every step, validation and file of the run is compared with one
that is computed separately, in other words than those of the loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import pad

from rismusic.doctor import references as ref
from rismusic.doctor.case import Case
from rismusic.doctor.causes import place_of
from rismusic.doctor.data_checks import numbers_of_sources, scene_keys, snr_db
from rismusic.doctor.hypotheses import explanation, given, setting, step
from rismusic.doctor.loss_checks import gradients_by
from rismusic.doctor.report import Findings, listed, must_be_zero, report_of
from rismusic.doctor.state import groups_of
from rismusic.io import Recording
from rismusic.nn import validation
from rismusic.nn.data import with_estimated_noise
from rismusic.nn.learner import Learner
from rismusic.nn.losses import Losses
from rismusic.nn.monitors import Finding, Report, at_most
from rismusic.nn.run_folder import BEST, LAST, RunFolder
from rismusic.nn.spec import TermName, TrainSpec
from rismusic.nn.train import Trainer
from rismusic.sources import Sources

# The short run: epochs, steps of each, batches of a step, scenes of a batch, validation scenes.
EPOCHS, STEPS = 2, 3
_PARTS, _BATCH, _VALIDATION = 2, 4, 10
# Largest relative difference of what must be equal up to rounding.
_SAME = 1e-3
# The settings of AdamW that the documentation states.
_BETAS, _EPSILON = (0.9, 0.999), 1e-8
_OPTIONS = {"betas": _BETAS, "eps": _EPSILON, "amsgrad": False, "maximize": False}
# Scenes whose sources are located with the labels of other scenes.
_LOCATED = 16

# What a step does.
_ORDER_OF_A_STEP = (
    "Each step: zero_grad, backward on each batch's loss over the number of batches, clip, step."
)

Tensors = dict[str, Tensor]


@dataclass
class RecordedStep:
    """One call of ``Learner.step`` by the loop, with parameters and averages before and after it.

    Gradients and learning rates are those at the optimizer's step; ``numbers`` is what the step reported.
    """

    recordings: list[Recording]
    beta: float
    weights: Mapping[TermName, float]
    before: Tensors
    average: Tensors
    gradients: Tensors = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    after: Tensors = field(default_factory=dict)
    average_after: Tensors = field(default_factory=dict)
    steps: int = 0
    numbers: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass
class RecordedValidation:
    """One pass over the validation set by the loop, with the parameters and averages at that time."""

    recordings: list[Recording]
    weights: Tensors
    average: Tensors


@dataclass
class ShortRun:
    """A short run of the trainer and all it did."""

    trainer: Trainer
    steps: list[RecordedStep] = field(default_factory=list)
    scored: list[Recording] = field(default_factory=list)
    validations: list[RecordedValidation] = field(default_factory=list)

    @property
    def spec(self) -> TrainSpec:
        """Settings of the run."""
        return self.trainer.spec


class _StopError(Exception):
    """Ends a run in the middle of an epoch."""


def short_spec(spec: TrainSpec) -> TrainSpec:
    """The settings with few steps, two batches a step, no dropout and no clipping."""
    batch = min(_BATCH, spec.batch)
    return spec.replace(
        network=spec.network.replace(dropout=0.0),
        schedule=spec.schedule.replace(epochs=EPOCHS, warm_up=0.5),
        batch=batch,
        accumulation=_PARTS,
        scenes_per_epoch=batch * _PARTS * STEPS,
        validation_scenes=_VALIDATION,
        scored_scenes=2,
        clip_norm=1e9,
        log_steps=2,
        save_minutes=1e6,
        save_steps=1,
        patience=0,
        skipped_max=EPOCHS * STEPS,
    )


def record_run(trainer: Trainer, stop_after: int | None = None) -> ShortRun:
    """Train, and record every step and validation; stop in the middle if asked."""
    run, learner, scenes = ShortRun(trainer), trainer.learner, trainer.scenes
    own_step, own_validation, own_scored = learner.step, scenes.validation, scenes.scored

    def copied(tensors: Mapping[str, Tensor]) -> Tensors:
        return {name: value.detach().clone() for name, value in tensors.items()}

    def step(recordings: Any, beta: float, weights: Mapping[TermName, float]) -> dict[str, Tensor]:
        if len(run.steps) == stop_after:
            raise _StopError
        before, average = copied(learner.weights), copied(learner.average)
        one = RecordedStep(list(recordings), beta, dict(weights), before, average)
        run.steps.append(one)
        result = own_step(iter(one.recordings), beta, weights)
        one.after, one.average_after = copied(learner.weights), copied(learner.average)
        one.numbers = result
        return result

    def validation() -> Iterator[Recording]:
        one = RecordedValidation([], copied(learner.weights), copied(learner.average))
        run.validations.append(one)
        for recording in own_validation():
            one.recordings.append(recording)
            yield recording

    def scored() -> tuple[Recording, Recording]:
        found = own_scored()
        run.scored.append(found[0])
        return found

    def before_step(*_: object) -> None:
        if not run.steps:
            return
        names = {id(weight): name for name, weight in learner.weights.items()}
        one = run.steps[-1]
        one.steps += 1
        one.gradients = copied({n: w.grad for n, w in learner.weights.items() if w.grad is not None})
        groups = groups_of(learner.optimizer)
        one.rates = {names[key]: float(group["lr"]) for key, group in groups.items() if key in names}

    handle = learner.optimizer.register_step_pre_hook(before_step)
    vars(learner)["step"] = step
    vars(scenes).update(validation=validation, scored=scored)
    try:
        trainer.train()
    except _StopError:
        pass
    finally:
        handle.remove()
        del vars(learner)["step"], vars(scenes)["validation"], vars(scenes)["scored"]
    return run


def short_run(case: Case) -> ShortRun:
    """The short run of the case, made once."""
    if case.short_run is None:
        case.short_run = record_run(case.start(short_spec(case.spec)))
    assert isinstance(case.short_run, ShortRun)
    return case.short_run


def _gradient(
    learner: Learner, at: Tensors, recording: Recording, beta: float, weights: Mapping[TermName, float]
) -> Tensors:
    """Gradient of the loss of one batch at given parameters, apart from the learner's own."""
    leaves, losses = _losses(learner, at, recording, beta, weights)
    return gradients_by(leaves, losses.total)


def _losses(
    learner: Learner, at: Tensors, recording: Recording, beta: float, weights: Mapping[TermName, float]
) -> tuple[Tensors, Losses]:
    """Given parameters as leaves, and the losses of one batch at them."""
    leaves = {name: value.clone().requires_grad_() for name, value in at.items()}
    prediction = functional_call(learner.network, leaves, (recording,))
    return leaves, learner.prediction_losses(prediction, recording, beta, weights)


def _weights_in(run: ShortRun, one: RecordedStep) -> str:
    """The weights of the losses in the gradient of a step, where others than those of the plan explain it."""
    learner = run.trainer.learner
    every = {name: one.weights.get(name) or 0.1 for name in learner.spec.loss.weights}
    rows: dict[TermName, Tensor] = {}
    for recording in one.recordings:
        leaves, losses = _losses(learner, one.before, recording, one.beta, every)
        for name, value in losses.terms.items():
            own = _flat(gradients_by(leaves, value), one.before) / len(one.recordings)
            rows[name] = rows.get(name, 0) + own
    A, b = torch.stack(list(rows.values()), 1), _flat(one.gradients, one.before)
    if not bool(A.isfinite().all() & b.isfinite().all()):
        return ""
    sizes = A.norm(dim=0).clamp_min(1e-30)
    found = torch.linalg.lstsq(A / sizes, b[:, None]).solution[:, 0]
    if float((A / sizes @ found - b).norm()) > 3 * _SAME * float(b.norm()):
        return ""
    used = dict(zip(rows, (found / sizes).tolist(), strict=True))
    known = dict(zip(rows, (_SAME * b.norm() / sizes).tolist(), strict=True))
    wrong = [name for name, w in used.items() if abs(w - one.weights.get(name, 0.0)) > 3 * known[name]]
    values = [f"{name} {used[name]:.3g} in place of {one.weights.get(name, 0.0):.3g}" for name in wrong]
    return f": the weights of the losses in it are other ones ({listed(values)})" if values else ""


def _flat(tensors: Tensors, like: Tensors) -> Tensor:
    return torch.cat([tensors.get(n, torch.zeros_like(v)).flatten().double() for n, v in like.items()])


def _mean(parts: list[Tensors], factor: float = 1.0) -> Tensors:
    return {
        name: sum((p[name] for p in parts), torch.zeros_like(v)) * (factor / len(parts))
        for name, v in parts[0].items()
    }


def _distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Norm of the difference over the norm of the second; a missing tensor counts as 0."""
    off = {name: (one[name] - value if name in one else -value) for name, value in other.items()}
    return ref.total_norm(off) / max(ref.total_norm(other), 1e-30)


def check_replay(case: Case) -> Report:
    """[REPLAY]: every step of a short run of the loop, computed separately."""
    weights, average = case.learner.weights, case.learner.average
    aliased = [name for name in weights if weights[name].data_ptr() == average[name].data_ptr()]
    if aliased:
        meaning = "the moving average (EMA) shares its memory with the weights, so it is no average."
        name = "averaged weights that are the weights themselves"
        return report_of("REPLAY", "no run", [must_be_zero(name, len(aliased), meaning)])
    run = short_run(case)
    findings = [*_plan_findings(run), *_gradient_findings(run), *_update_findings(run)]
    return report_of("REPLAY", f"{len(run.steps)} steps of the loop, computed separately", findings)


def _plan_findings(run: ShortRun) -> list[Finding]:
    """Steps, beta, weights of the losses, learning rates and scenes of the loop, against the settings."""
    spec, total, highest = run.spec, EPOCHS * STEPS, _highest(run)
    factors = ref.planned_rate_factors(spec.schedule, total).tolist()
    beta_off, schedule_off = 0.0, dict.fromkeys((ref.EXPECTED, *_TICKS), 0.0)
    wrong_weights: set[str] = set()
    wrong_rates: set[str] = set()
    keys: list[bytes] = []
    for number, one in enumerate(run.steps):
        epoch = number // STEPS
        beta, tolerance = ref.planned_beta(spec.schedule, epoch)
        beta_off = max(beta_off, abs(one.beta - beta) - tolerance)
        expected = ref.planned_weights(spec.loss, spec.schedule, epoch, one.beta)
        wrong_weights |= {n for n, v in one.weights.items() if abs(v - expected.get(n, 0.0)) > 1e-6}
        for name, rate in one.rates.items():
            for cause, tick in {ref.EXPECTED: number, **{c: t(number) for c, t in _TICKS.items()}}.items():
                off = abs(rate - factors[min(tick, total - 1)] * highest[name]) / max(highest[name], 1e-30)
                schedule_off[cause] = max(schedule_off[cause], off)
                if cause == ref.EXPECTED and off > _SAME:
                    wrong_rates.add("head" if _is_head(name) else "backbone")
        keys += [key for recording in one.recordings for key in scene_keys(recording)]
    rate_off, cause = schedule_off[ref.EXPECTED], ref.best_explanation(schedule_off)
    steps, logged = sum(one.steps for one in run.steps), len(run.trainer.run.records("step"))
    epochs = run.trainer.state.epoch
    repeated = min((one.steps for one in run.steps), default=0)
    ended = epochs < EPOCHS and len(run.steps) == epochs * STEPS
    known = ended or repeated > 1
    meaning = (
        f"the training stops after {epochs} of {EPOCHS} epochs, which are whole, although patience = 0: "
        "the early stop, or the number of epochs."
        if ended
        else f"each call of the learner's step takes {repeated} optimizer steps with the same gradient."
        if repeated > 1
        else f"{steps} optimizer steps in {len(run.steps)} calls of the learner's step, {total} are planned "
        f"({EPOCHS} epochs of {STEPS}): its step is outside the batch loop, or steps are left out."
    )
    planned = [run.trainer.scenes.noise_hidden(*divmod(number, STEPS)) for number in range(len(run.steps))]
    hidden = [[_noise_hidden(one) for one in step.recordings] for step in run.steps]
    pairs = [pair for one, two in zip(planned, hidden, strict=True) for pair in zip(one, two, strict=False)]
    whole = spec.system.hardware.response_error == 0
    findings = Findings()
    findings.must_be_zero(
        "optimizer steps per epoch, distance from the number of batches",
        abs(steps - total) / EPOCHS + sum(one.steps != 1 for one in run.steps),
        meaning,
        where=place_of(run.trainer._end_epoch if ended else type(run.trainer.learner).step) if known else "",
    )
    findings.must_be_zero(
        "batches of the loop whose noise variance is not hidden as planned",
        sum(float((found.double() - float(plan)).abs().max()) > 0 for plan, found in pairs) if whole else 0,
        f"the noise variance is hidden in {sum(float(found.double().mean()) for _, found in pairs):g} of "
        f"{len(pairs)} batches that the loop gets, but the plan of the settings (noise_hidden) hides "
        f"{sum(plan for plan, _ in pairs)}: the plan does not reach the scenes.",
        where=place_of(run.trainer.scenes.step),
    )
    findings.must_be_zero(
        "number of logged steps, distance from the steps of the loop",
        abs(logged - len(run.steps)),
        "the log does not contain every step.",
    )
    findings.at_most(
        "distance of the beta that the loop uses from the plan",
        beta_off,
        0.0,
        "the steps use another beta than the plan: it is not passed on, or counted in steps.",
    )
    findings.must_be_zero(
        "loss weights in use that differ from the plan",
        len(wrong_weights),
        f"the loss weights of {listed(sorted(wrong_weights))} are not those of the plan for the epoch.",
    )
    findings.at_most(
        "distance of the learning rates in use from those of the settings, over the highest",
        rate_off,
        _SAME,
        f"the learning rate of {' and '.join(sorted(wrong_rates))} is not that of the settings and the "
        f"schedule{cause or ', or groups are exchanged'}.",
        "Step the optimizer, then the schedule. The head has head_learning_rate, all else the other.",
    )
    if spec.fresh:
        findings.must_be_zero(
            "scenes that the loop uses twice",
            len(keys) - len(set(keys)),
            "steps or epochs use the same scenes again, although the settings ask for fresh ones.",
        )
    return findings


def _noise_hidden(recording: Recording) -> Tensor:
    """For each scene, whether its noise variance is the estimate that stands for a hidden one."""
    estimate, noise = with_estimated_noise(recording).noise_variance, recording.noise_variance
    assert estimate is not None
    return torch.isclose(noise, estimate, rtol=1e-5) if noise is not None else estimate.isfinite()


# The step of the schedule that a loop uses by mistake, by its number.
_TICKS: dict[str, Callable[[int], int]] = {
    ": the schedule advances before the optimizer steps": lambda number: number + 1,
    ": the schedule ticks in epochs": lambda number: number // STEPS,
    ": the schedule never advances": lambda _: 0,
    ": the schedule counts batches, not steps": lambda number: number * _PARTS,
    ": the schedule counts scenes, not steps": lambda number: number * _PARTS * _BATCH,
}


def _is_head(name: str) -> bool:
    return name.split(".")[0] in ("details", "count") or "write" in name.split(".")


def _highest(run: ShortRun) -> dict[str, float]:
    """Highest learning rate of each parameter, from the settings."""
    spec, learner = run.spec, run.trainer.learner
    names = {id(weight): name for name, weight in learner.weights.items()}
    if spec.network.kind != "sbl_unrolled":
        groups = groups_of(learner.optimizer)
        return {names[key]: float(group["highest"]) for key, group in groups.items() if key in names}
    head, rest = spec.head_learning_rate, spec.backbone_learning_rate
    return {name: head if _is_head(name) else rest for name in learner.weights}


def _gradient_findings(run: ShortRun) -> list[Finding]:
    """The gradients that the optimizer got, against separately computed ones."""
    worst, logged, cause = 0.0, 0.0, ""
    for number, one in enumerate(run.steps):

        def of(recording: Recording, one: RecordedStep = one) -> Tensors:
            return _gradient(run.trainer.learner, one.before, recording, one.beta, one.weights)

        parts = [of(recording) for recording in one.recordings]
        expected = _mean(parts)
        size = ref.total_norm(expected)
        if one.numbers:
            logged = max(logged, abs(float(one.numbers["gradient"]) / max(size, 1e-30) - 1))
        off = _distance(one.gradients, expected)
        if off <= worst:
            continue
        worst = off
        if off <= _SAME:
            continue
        count, old = len(parts), run.steps[number - 1].gradients if number else {}
        added = {name: value + old.get(name, 0.0) for name, value in expected.items()}
        half, first = run.spec.batch // 2, run.steps[0].recordings
        halves = [_mean([of(r[part]) for r in one.recordings]) for part in (slice(half), slice(half, None))]
        forms = {
            ": the accumulated batches are summed, not averaged": [_mean(parts, float(count))],
            ": it is divided twice by the number of accumulated batches": [_mean(parts, 1 / count)],
            ": it is reversed (the wrong sign)": [_mean(parts, -1.0)],
            ": it is that of one of the accumulated batches, the others are left out": parts,
            ": it is that of a part of the batch, other scenes are left out": halves,
            ": the gradients of earlier steps are added up (zero_grad is missing)": [added] if number else [],
            ": it is that of the first batch again, not of this one": [_mean(list(map(of, first)))],
        }
        candidates = {
            ": it is 0 (zero_grad after backward?)": ref.total_norm(one.gradients) / max(size, 1e-30)
        }
        for name, some in forms.items():
            candidates[name] = min((_distance(one.gradients, g) for g in some), default=math.inf)
        cause = ref.best_explanation({ref.EXPECTED: off, **candidates}) or _weights_in(run, one)
        if number and cause:
            break
    coarse = run.trainer.learner.precision is not None
    found = Findings()
    found.at_most(
        "relative distance of the gradient in the loop from one computed separately",
        worst,
        2e-2 if coarse else _SAME,
        f"the optimizer does not get the gradient of the loss of this step's batches{cause}.",
        "" if "weights" in cause else _ORDER_OF_A_STEP,
    )
    meaning = "the logged gradient norm is not that of the loss."
    found.at_most("logged norm of the gradient over that of the loss, distance from 1", logged, 0.05, meaning)
    return found


def _adamw(run: ShortRun, name: str, number: int) -> Tensor:
    """The change of a parameter by a step of AdamW, from the gradients so far."""
    beta_1, beta_2 = setting("beta_1", _BETAS[0]), setting("beta_2", _BETAS[1])
    one = run.steps[number]
    m = v = torch.zeros_like(one.before[name], dtype=torch.float64)
    for earlier in (one for one in run.steps[: number + 1] if name in one.gradients):
        g = given("the gradient", earlier.gradients[name].double())
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g.square()
    root = _unbiased(v, beta_2, number).sqrt() + setting("epsilon", _EPSILON)
    way = _adapted(_unbiased(m, beta_1, number), root)
    decay = setting("the weight decay", run.spec.weight_decay if one.before[name].ndim > 1 else 0.0)
    rate = one.rates[name] if name in one.rates else _highest(run)[name]
    way = way + decay * given("the weight", one.before[name].double())
    return -setting("the learning rate", rate) * way


@step("the correction of the bias (Adam without it)")
def _unbiased(moment: Tensor, beta: float, number: int) -> Tensor:
    return moment / (1 - beta ** (number + 1))


@step("the division by the root of the second moment (SGD with momentum)")
def _adapted(moment: Tensor, root: Tensor) -> Tensor:
    return moment / root


def _averaged(run: ShortRun, name: str, number: int) -> Tensor:
    """The change of an averaged parameter by a step."""
    one, t = run.steps[number], setting("the number of the step", number + 1.0)
    decay = min(setting("the decay of the average", run.spec.average_decay), (1 + t) / (10 + t))
    after = given("the weight after the step", one.after[name].double())
    return (1 - decay) * (after - given("the average", one.average[name].double()))


def _update_findings(run: ShortRun) -> list[Finding]:
    """The updates of weights and averages, against AdamW and the moving average by their formulas."""
    spec = run.spec
    off: dict[str, dict[str, float]] = {"weights": {}, "average": {}}
    causes = dict.fromkeys(off, "")
    for kind, define in (("weights", _adamw), ("average", _averaged)):

        def changed(name: str, number: int, kind: str = kind) -> Tensor:
            one = run.steps[number]
            if kind == "weights":
                return one.after[name].double() - one.before[name].double()
            return one.average_after[name].double() - one.average[name].double()

        for number, one in enumerate(run.steps):
            for name, old in (one.gradients if kind == "weights" else one.average).items():
                expected = define(run, name, number)
                size = expected.norm().clamp_min(1e-30)
                # In single precision, the difference of two weights is exact to their rounding only.
                rounding = 1e-6 * float((one.before[name] if kind == "weights" else old).norm() / size)
                far = float((changed(name, number) - expected).norm() / size) - rounding
                off[kind][name] = max(off[kind].get(name, 0.0), far)
        worst = max(off[kind], key=off[kind].__getitem__, default="")
        if worst and off[kind][worst] > 0.05:
            numbers = [n for n, one in enumerate(run.steps) if kind == "average" or worst in one.gradients]
            cases = [partial(define, run, worst, number) for number in numbers]
            causes[kind] = explanation([changed(worst, number) for number in numbers], cases, 1e-2)
    wrong, skipped = off["weights"], off["average"]
    groups = run.trainer.learner.optimizer.param_groups
    options = {
        f"{name} = {group[name]}, not {usual}"
        for group in groups
        for name, usual in _OPTIONS.items()
        if name in group and group[name] != usual
    }
    held, decayed = groups_of(run.trainer.learner.optimizer), []
    for name, weight in run.trainer.learner.weights.items():
        decay = float(held.get(id(weight), {}).get("weight_decay", 0.0))
        if abs(decay - (spec.weight_decay if weight.ndim > 1 else 0.0)) > 1e-12:
            decayed.append(name)
    late = [name for name, value in skipped.items() if value > 0.05]
    reason = f": it is set to {listed(sorted(options))}" if options else causes["weights"]
    still = all(torch.equal(one.average[n], one.average_after[n]) for one in run.steps for n in one.average)
    fault = causes["average"] or ": it is updated with another decay, or the wrong way round"
    if still:
        fault = ": the moving average (EMA) of the weights is never updated"
    elif len(late) < len(skipped):
        fault = f": it skips or misses {listed(late)}"
    found = Findings()
    found.must_be_zero(
        "parameters with another weight decay than the settings",
        len(decayed),
        f"the weight decay of {listed(decayed)} is not that of the settings, which is for matrices, and "
        "0 for biases and norms (parameter_groups).",
    )
    found.at_most(
        "relative distance of the weights' updates from those of AdamW with the settings",
        max(wrong.values(), default=0.0),
        0.05,
        f"the optimizer's update is not that of AdamW with the settings{reason}.",
        "Check optimizer, betas, weight decay (none for biases and norms) and what else changes weights.",
        place_of(type(run.trainer.learner).__init__) if options else "",
    )
    found.at_most(
        "relative distance of the moving average's update from its formula",
        max(skipped.values(), default=0.0),
        0.05,
        f"the moving average (EMA) is not updated by (1 - decay) times the difference{fault}.",
    )
    return found


def check_validation_set(case: Case) -> Report:
    """[HELDOUT]: the validation set that the loop uses, and its loss computed separately."""
    run = short_run(case)
    findings = [*_set_findings(case, run), *_loss_findings(run), *_score_findings(case)]
    return report_of("HELDOUT", f"{len(run.validations)} validations of the loop", findings)


def _set_findings(case: Case, run: ShortRun) -> list[Finding]:
    """Size, splits, SNR and number of sources of the validation set."""
    spec = case.spec
    used = run.validations[-1].recordings if run.validations else []
    whole = list(case.trainer.scenes.validation())
    findings = Findings()
    findings.must_be_zero(
        "number of validation scenes in use, distance from the settings",
        abs(sum(map(len, used)) - _VALIDATION) + abs(sum(map(len, whole)) - spec.validation_scenes),
        "the validation set has another number of scenes than the settings.",
    )
    keys = [key for recording in whole for key in scene_keys(recording)]
    findings.must_be_zero(
        "validation scenes that are there several times",
        len(keys) - len(set(keys)),
        "the validation set contains scenes twice: a part of it repeats another one.",
    )
    hidden = [_noise_hidden(recording) for recording in used]
    share = float(torch.cat(hidden).double().mean()) if hidden else 0.5
    half = case.spec.system.hardware.response_error > 0 or abs(share - 0.5) < 1e-6
    scored = [key for recording in run.scored[-1:] for key in scene_keys(recording)]
    trained = {key for step in run.steps for recording in step.recordings for key in scene_keys(recording)}
    findings.must_be_zero(
        "share of the validation scenes in use with a hidden noise variance, distance from a half",
        0.0 if half else abs(share - 0.5),
        f"the noise variance is hidden in {share:.0%} of the validation scenes, not in half of them.",
    )
    findings.must_be_zero(
        "scenes of the scores (recall, GOSPA) that the loop trains on",
        len(trained.intersection(scored)) if spec.fresh else 0,
        "recall, F1 and GOSPA are those of scenes that the network is trained on (a leak): scored scenes "
        "are not of the validation set.",
        where=place_of(run.trainer.scenes.scored),
    )
    findings.must_be_zero(
        "number of different scored scenes, distance from the settings",
        abs(len(set(scored)) - run.spec.scored_scenes) if run.scored else 0,
        f"{len(set(scored))} scenes are scored, the settings have {run.spec.scored_scenes}.",
        where=place_of(run.trainer.scenes.scored),
    )
    training = case.recordings[:4]
    snr = snr_db(spec.system, training), snr_db(spec.system, whole)
    numbers = numbers_of_sources(training), numbers_of_sources(whole)
    for what, limit, (one, other) in (("SNR, dB", 4.0, snr), ("number of sources", 0.75, numbers)):
        if len(one) < 16 or len(other) < 16:
            continue
        # Two sets of the same distribution: mean and spread agree within their standard errors.
        spread = float(torch.cat((one, other)).std().clamp_min(1e-6))
        error = 4 * spread * math.sqrt(1 / len(one) + 1 / len(other))
        off = max(abs(float(one.mean() - other.mean())), abs(float(one.std() - other.std())))
        findings.at_most(
            f"difference of validation and training scenes in mean or spread of the {what}",
            off,
            max(error, limit / 4),
            f"validation scenes have another {what.split(',')[0]} than the training scenes.",
        )
    return findings


def _score_findings(case: Case) -> list[Finding]:
    """The estimates that the loop scores, with the labels of the scenes and with those of others."""
    spec = short_spec(case.spec).replace(scored_scenes=_LOCATED, validation_scenes=_LOCATED)
    match = vars(validation)["match"]

    def located(change: Callable[[Tensor], Tensor]) -> list[Sources]:
        trainer, found = case.start(spec), []
        own = trainer.scenes.scored

        def scored() -> tuple[Recording, Recording]:
            one, two = (replace(r, truth=None if r.truth is None else r.truth.each(change)) for r in own())
            return one, two

        def seen(truth: Sources, estimate: Sources, *rest: Any) -> Any:
            found.append(estimate)
            return match(truth, estimate, *rest)

        vars(trainer.scenes)["scored"] = scored
        vars(validation)["match"] = seen
        try:
            record_run(trainer, stop_after=0)
        finally:
            vars(validation)["match"] = match
        return found

    pairs = zip(located(lambda value: value), located(lambda value: value.flip(0)), strict=True)
    changed, most = 0, spec.network.sources_max
    for one, two in pairs:
        a, b = (pad(v.azimuth, (0, most - v.azimuth.shape[1]), value=math.nan) for v in (one, two))
        changed = max(changed, int((~torch.isclose(a, b, equal_nan=True)).any(-1).sum()))
    return [
        must_be_zero(
            "scored scenes whose estimates change with the labels",
            changed,
            f"the estimates of recall and GOSPA change in {changed} of {_LOCATED} scenes if they get the "
            "labels of other scenes (a leak): the search of the validation is given the truth, such "
            "as the true number of sources.",
            "Take the number of sources from the network (count_logits), as inference does.",
            place_of(vars(validation)["_score"]),
        )
    ]


def _loss_findings(run: ShortRun) -> list[Finding]:
    """The logged validation losses, against those of the same scenes computed separately, as in training."""
    spec, learner = run.spec, run.trainer.learner
    epochs = run.trainer.run.records("epoch")
    numbers = [int(line["epoch"]) for line in epochs]
    findings = Findings()
    findings.must_be_zero(
        "epochs of the log that are missing or have another number",
        float(numbers != list(range(EPOCHS))),
        f"the log has the epochs {numbers}, the loop had 0 to {EPOCHS - 1}.",
    )
    if not epochs or not run.validations:
        return findings
    losses = [float(str(line["validation"]["loss"])) for line in epochs]
    last, logged = run.validations[-1], epochs[-1]["validation"]["terms"]
    beta = spec.schedule.beta
    planned = ref.planned_weights(spec.loss, spec.schedule, EPOCHS - 1, beta)
    weights: dict[TermName, float] = {name: planned[name] for name in spec.loss.weights}

    sizes = torch.tensor([float(len(recording)) for recording in last.recordings])

    def distance(at: Tensors, beta: float, shares: Tensor | None = None) -> tuple[float, str]:
        """Weighted distance of the terms from the logged ones, over the loss, and the worst term."""
        shares = sizes / sizes.sum() if shares is None else shares
        off = {name: -float(str(logged.get(name, math.nan))) for name in weights}
        for recording, share in zip(last.recordings, shares.tolist(), strict=True):
            # With a gradient, as in training, and by term: in the total, rounding errors may cancel.
            for name, value in _losses(learner, at, recording, beta, weights)[1].terms.items():
                off[name] += float(value.detach()) * share
        off = {name: abs(value) * weights[name] for name, value in off.items() if name in logged}
        total = sum(weights[name] * float(str(logged[name])) for name in off)
        worst = max(off, key=off.__getitem__)
        return max(sum(off.values()), abs(losses[-1] - total)) / max(abs(losses[-1]), 1e-9), worst

    value, worst = distance(last.average, beta)
    one = torch.ones_like(sizes)
    reductions = {
        ": it is the mean over the batches, not over the scenes": one / len(one),
        ": it is the sum over the batches, not their mean": one,
        ": it is the sum over the scenes, not their mean": sizes,
        ": it is that of the first batch alone": one.cumsum(0) == 1,
        ": it is that of the last batch alone": one.cumsum(0) == len(one),
    }
    off = {
        ref.EXPECTED: value,
        ": it is that of the current weights, not of their moving average": distance(last.weights, beta)[0],
        ": it is at beta = 0 (another matrix?)": distance(last.average, 0.0)[0],
    }
    off |= {words: distance(last.average, beta, s.double())[0] for words, s in reductions.items()}
    cause = ref.best_explanation(off) or f": another matrix, precision, or dropout (most in {worst})?"
    findings += _training_loss_findings(run, epochs)
    findings.at_most(
        "relative difference of the logged validation loss from the training loss of the same scenes",
        value,
        # Training in less than float32 differs by that much.
        1e-5 if learner.precision is None else 5e-2,
        f"the validation differs from the loss of the averaged weights on the validation scenes{cause}.",
    )
    measured = abs(losses[-1] - losses[0]) if len(losses) > 1 else math.inf
    meaning = "the validation loss is constant: it uses stale weights, or a network that is not trained."
    findings.at_least("change of the validation loss from epoch to epoch", measured, 1e-7, meaning)
    return findings


def _training_loss_findings(run: ShortRun, epochs: list[dict[str, Any]]) -> list[Finding]:
    """The logged training losses of each epoch, against the means over its steps."""
    steps = [{name: float(value) for name, value in one.numbers.items()} for one in run.steps]
    wrong = ("the mean since the start", "that of the last step", "the sum", "that of another epoch")
    off = dict.fromkeys((ref.EXPECTED, *(f": it is {words}" for words in wrong)), 0.0)
    for line in epochs:
        first = int(line["epoch"]) * STEPS
        own, logged = steps[first : first + STEPS], line["training"]
        for name in logged.keys() & {name for one in own for name in one}:
            # A step without a term counts as 0 of it: a curriculum leaves some out at first.
            value, values = float(logged[name]), [one.get(name, 0.0) for one in own]
            every, mean = [one.get(name, 0.0) for one in steps[: first + STEPS]], sum(values) / len(values)
            rest = [one.get(name, 0.0) for one in steps if one not in own] or [math.inf]
            forms = (mean, sum(every) / len(every), values[-1], sum(values), sum(rest) / len(rest))
            for cause, form in zip(off, forms, strict=True):
                off[cause] = max(off[cause], abs(value - form) / max(abs(mean), 1e-6))
    cause, trainer = ref.best_explanation(off), type(run.trainer)
    return [
        at_most(
            "relative difference of the logged training losses of an epoch from the means over its steps",
            off[ref.EXPECTED],
            _SAME,
            f"the logged training loss of an epoch is not the mean of its steps{cause}.",
            "Clear the sums at the end of each epoch, and divide by the number of steps taken.",
            place_of(trainer._end_epoch if "since the start" in cause else trainer._log_epoch),
        )
    ]


def check_files(case: Case) -> Report:
    """[FILES]: the written weights are those that they should be, and a resumed run ends like a whole one."""
    run = short_run(case)
    findings = [*_weight_findings(run), *_resume_findings(case, run)]
    return report_of("FILES", "weights of the best and last epoch; resumption", findings)


def _weight_findings(run: ShortRun) -> list[Finding]:
    losses = [float(str(line["validation"]["loss"])) for line in run.trainer.run.records("epoch")]
    # The first validation is that before the training.
    epochs = run.validations[-len(losses) :]
    best = min(range(len(losses)), key=losses.__getitem__)
    findings = Findings()
    for file, epoch, what in ((LAST, len(losses) - 1, "last"), (BEST, best, "best")):
        stored = load_file(run.trainer.run.folder / file)
        if file == BEST and losses[0] == losses[-1]:
            continue
        off = {": it has the current weights, not their moving average": epochs[epoch].weights}
        for other, one in enumerate(epochs):
            text = f": it has those of epoch {other}, but epoch {epoch} is the {what} one"
            off[text if other != epoch else ref.EXPECTED] = one.average
        candidates = {words: _distance(stored, tensors) for words, tensors in off.items()}
        cause = ref.best_explanation(candidates)
        findings.at_most(
            f"relative distance of {file} from the averaged weights of the {what} epoch",
            candidates[ref.EXPECTED],
            1e-6,
            f"the file of the {what} weights has other weights than it should{cause}.",
        )
    return findings


def _resume_findings(case: Case, run: ShortRun) -> list[Finding]:
    """A run that is stopped in the middle of the first epoch and resumed, against the whole run."""
    stopped = record_run(case.start(run.spec), stop_after=STEPS - 1)
    before = {name: value.clone() for name, value in stopped.trainer.learner.tensors().items()}
    again = case.make(run.spec, RunFolder(stopped.trainer.run.folder))
    again.resume()
    after = again.learner.tensors()
    wrong: dict[str, list[str]] = {}
    for name, value in before.items():
        if name not in after or not torch.equal(value, after[name]):
            wrong.setdefault(name.partition("/")[0], []).append(name)
    place = (again.state.epoch, again.state.step)
    resumed = record_run(again)
    end = {name: value for name, value in resumed.trainer.learner.tensors().items() if "/" in name}
    whole = {name: value for name, value in run.trainer.learner.tensors().items() if "/" in name}
    found = Findings()
    meaning = f"a resumed training does not get back: {listed(sorted(wrong))}."
    found.must_be_zero("kinds of state that a resumed training does not get back", len(wrong), meaning)
    found.must_be_zero(
        "steps between the interruption and the place of resumption",
        abs(place[0] * STEPS + place[1] - (STEPS - 1)),
        f"a resumed training continues at epoch {place[0]}, step {place[1]}, not where it stopped.",
    )
    found.at_most(
        "relative distance of weights and optimizer after a resumed training from those of a whole one",
        _distance(end, whole),
        1e-4,
        "an interrupted and resumed training ends with other weights than an uninterrupted one.",
    )
    return found
