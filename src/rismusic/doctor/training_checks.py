"""Checks of the training loop: schedule, optimizer step, parameter updates, validation and scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rismusic.doctor.case import Case
from rismusic.doctor.references import cosine, total_norm
from rismusic.doctor.report import listed, must_be_zero, report_of
from rismusic.io import Recording
from rismusic.metrics import Score
from rismusic.nn import data, validation
from rismusic.nn import monitors as probes
from rismusic.nn.data import TrainingScenes
from rismusic.nn.learner import Learner
from rismusic.nn.monitors import MIN_DECREASE, OverfitResult, Report, at_least, at_most, overfit_one_batch
from rismusic.nn.spec import TrainSpec
from rismusic.sources import Sources

# Scenes in the batch of the overfit_one_batch test, and in the batches of a trial step.
_LITMUS_BATCH, _TRIAL_BATCH = 32, 8
# Share of the decrease that gradient and learning rate promise, and least decrease in any case.
_SHARE_OF_POSSIBLE, _LEAST_DECREASE = 0.3, 1e-3
# AdamW divides by the size of the gradient plus its epsilon, which may be this share of the clipped gradient.
_EPSILON_SHARE = 0.1
# Floor of the learning rate from which it counts as constant.
_CONSTANT_RATE = 0.9
# The short training: epochs, steps of each, scenes of a batch.
_EPOCHS, _STEPS, _BATCH = 2, 3, 4
# Fitting a fixed set of scenes: their number, epochs, scenes of a batch, share of the error that may be left.
OVERFIT_SCENES, OVERFIT_EPOCHS = 512, 20
_OVERFIT_BATCH, _OVERFIT_LEFT = 32, 0.5


def check_first_steps(case: Case) -> Report:
    """[LITMUS]: five steps on one batch reduce its loss; without a learning rate they must not."""
    expected: list[float] = []

    def make(spec: TrainSpec) -> tuple[Learner, TrainingScenes]:
        trainer = case.start(spec)
        groups = trainer.learner.optimizer.param_groups
        expected.clear()

        def before_step(*_: object) -> None:
            # AdamW changes each number by about the learning rate, so this is the decrease to first order.
            expected.append(
                sum(
                    float(group["lr"]) * float(p.grad.abs().sum())
                    for group in groups
                    for p in group["params"]
                    if p.grad is not None
                )
            )

        trainer.learner.optimizer.register_step_pre_hook(before_step)
        return trainer.learner, trainer.scenes

    def with_batch(most: int, factor: float = 1.0) -> TrainSpec:
        batch = min(most, case.spec.batch)
        rates = (case.spec.backbone_learning_rate * factor, case.spec.head_learning_rate * factor)
        return case.spec.replace(
            batch=batch,
            accumulation=1,
            scenes_per_epoch=8 * batch,
            backbone_learning_rate=rates[0],
            head_learning_rate=rates[1],
        )

    def trained_at(factor: float) -> tuple[OverfitResult, float]:
        spec = with_batch(_LITMUS_BATCH, factor).replace(clip_norm=1e9)
        result = overfit_one_batch(spec, make=make)
        return result, sum(expected) / max(abs(result.before), 1e-12)

    trained, possible = trained_at(1.0)
    if case.spec.schedule.warm_up > 0 and possible > 1 and trained.decrease < MIN_DECREASE:
        # Rates at which the gradient promises more than the whole loss come after the warm-up only. Before
        # that, the training passes those at which it promises half of it.
        trained, possible = trained_at(0.5 / possible)
    frozen = with_batch(_TRIAL_BATCH, 0.0)
    untrained = overfit_one_batch(frozen, make=make, steps=2)
    findings = [
        at_least(
            "relative decrease of the loss in five steps on one batch",
            trained.decrease,
            min(MIN_DECREASE, max(_SHARE_OF_POSSIBLE * possible, _LEAST_DECREASE)),
            f"the network does not learn even one batch; gradient and learning rates allow {possible:.1%}.",
            "Raise the learning rates if they allow less than 1 %. Else look for a gradient that is not "
            "that of the loss.",
        ),
        at_most(
            "relative change of the loss at a learning rate of 0",
            abs(untrained.decrease),
            1e-3,
            "the loss changes without training, so its decrease proves nothing.",
            "Find what changes the weights besides the optimizer, or the loss at random (dropout).",
        ),
    ]
    text = f"loss {trained.before:.3f} -> {trained.after:.3f}; "
    text += f"without a learning rate {untrained.before:.3f} -> {untrained.after:.3f}"
    return report_of("LITMUS", text, findings)


def check_schedule(case: Case) -> Report:
    """[SCHEDULE]: the planned learning rate of every optimizer step, and beta of every epoch."""
    spec, learner = case.spec, case.learner
    factors = learner.factors.double().cpu()
    planned = spec.steps_per_epoch * spec.schedule.epochs
    peak = int(factors.argmax()) if len(factors) else 0
    once = "Advance the schedule once per optimizer step."
    findings = [
        must_be_zero(
            "length of the schedule in steps, distance from the number of optimizer steps",
            abs(len(factors) - planned),
            "the schedule does not count optimizer steps (batches or epochs instead?).",
            "The number of steps is scenes / (batch x accumulation), times epochs.",
        ),
        at_least(
            "smallest factor of the learning rate in the run",
            float(factors.min()),
            1e-6,
            "the learning rate is 0 at some step, such as the first one.",
            "Start the warm-up at 1 / (warm-up steps), not at 0.",
        ),
        at_least(
            "largest factor of the learning rate in the run",
            float(factors.max()),
            0.9,
            "the learning rate never reaches its maximum: made for batches and advanced once per epoch?",
            once,
        ),
        at_most(
            "share of the run in which the learning rate rises",
            peak / max(1, len(factors)),
            0.5,
            "the warm-up takes most of the run: made for batches and advanced once per epoch?",
            once,
        ),
    ]
    if planned >= 8:
        findings.append(
            at_most(
                "last factor of the learning rate",
                float(factors[-1]),
                spec.schedule.learning_rate_floor + 0.1,
                "the learning rate does not decay to its final value within the run.",
                once,
            )
        )
    # A floor near 1 is a constant learning rate.
    if planned >= 8 and spec.schedule.learning_rate_floor < _CONSTANT_RATE:
        findings.append(
            at_least(
                "number of different learning rates, over the number of steps",
                len(factors.unique()) / planned,
                0.4,
                "the learning rate changes in jumps, as if once per epoch.",
                once,
            )
        )
    usual = "A learning rate of 1e-4 to 1e-3 is usual for AdamW."
    for name, rate in _highest_rates(learner).items():
        findings += [
            at_least(f"highest learning rate of {name}", rate, 1e-7, "nothing is learned.", usual),
            at_most(
                f"highest learning rate of {name}",
                rate,
                0.05,
                "each step changes weights by about their own size, so the training diverges.",
                usual,
            ),
        ]
    betas = [data.beta_at(spec.schedule, epoch, spec.seed) for epoch in range(spec.schedule.epochs)]
    reached = max(betas) / spec.schedule.beta if spec.schedule.beta > 0 and len(betas) > 2 else 1.0
    findings += [
        at_most(
            "beta of the first epoch",
            betas[0],
            1e-6,
            "R_samp replaces R_pred from the start, before R_pred has learned anything.",
            "Let beta rise from 0.",
        ),
        at_most(
            "largest beta", max(betas), 0.999, "R_pred has no part in R_blend.", "Set schedule.beta below 1."
        ),
        at_least(
            "largest beta over that of the settings",
            reached,
            0.8,
            "beta never reaches the value that inference uses.",
            "Count epochs, not steps, in the ramp of beta.",
        ),
    ]
    text = f"{planned} steps, highest rate at step {peak}; beta {betas[0]:.2f} to {betas[-1]:.2f}"
    return report_of("SCHEDULE", text, findings)


def _highest_rates(learner: Learner) -> dict[str, float]:
    return {str(g["name"]): float(g["highest"]) for g in learner.optimizer.param_groups}


@dataclass
class OptimizerRecord:
    """The input of an optimizer.

    Args:
        steps: number of optimizer steps.
        gradients: gradients at the last step, by name.
        rates: learning rate of each group, at every step.
    """

    steps: int
    gradients: dict[str, Tensor]
    rates: list[dict[str, float]]


@contextmanager
def recorded(learner: Learner) -> Iterator[OptimizerRecord]:
    """Record the input of the optimizer at each of its steps."""
    record = OptimizerRecord(0, {}, [])

    def before_step(*_: object) -> None:
        record.steps += 1
        record.rates.append({str(g["name"]): float(g["lr"]) for g in learner.optimizer.param_groups})
        record.gradients = {
            name: weight.grad.detach().clone()
            for name, weight in learner.weights.items()
            if weight.grad is not None
        }

    handle = learner.optimizer.register_step_pre_hook(before_step)
    try:
        yield record
    finally:
        handle.remove()


def _trial(case: Case) -> tuple[Learner, list[Recording]]:
    """A new learner whose step takes two small batches, and these batches.

    Dropout is off, so that the losses of a step can be computed again.
    """
    batch = min(_TRIAL_BATCH, case.spec.batch)
    spec = case.spec.replace(
        network=case.spec.network.replace(dropout=0.0),
        batch=batch,
        accumulation=2,
        scenes_per_epoch=2 * batch * 8,
    )
    trainer = case.start(spec)
    return trainer.learner, list(trainer.scenes.step(0, 0))


def check_step(case: Case) -> list[Report]:
    """[STEP], [OPT], [LR]: the optimizer gets the gradient of the loss, and its step follows it."""
    learner, recordings = _trial(case)
    weights, beta = case.spec.loss.weights, 0.1
    parameters = {name: weight for name, weight in learner.weights.items() if weight.requires_grad}
    loss = torch.stack([learner.losses(one, beta, weights).total for one in recordings]).mean()
    gradients = torch.autograd.grad(
        loss, list(parameters.values()), allow_unused=True, materialize_grads=True
    )
    expected = dict(zip(parameters, gradients, strict=True))
    before, rates = probes.copy_parameters(learner), probes.learning_rate(learner)
    with recorded(learner) as record:
        numbers = learner.step(recordings, beta, weights)
    moved = _changes(learner.weights, before)
    size, clip = total_norm(expected), case.spec.clip_norm
    kept = min(1.0, clip / size) if size else 1.0
    numel = sum(value.numel() for value in expected.values())
    epsilon = max(float(group.get("eps", 0.0)) for group in learner.optimizer.param_groups)
    findings = [
        at_least(
            "cosine between the gradient in the optimizer and that of the loss",
            cosine(record.gradients, expected),
            0.99,
            "the optimizer does not get the gradient of the loss: reversed, replaced by numbers, or a batch "
            "left out of the accumulation?",
            "Call backward on each batch's loss over the number of batches. Leave the gradients unchanged.",
        ),
        at_most(
            "norm of the gradient in the optimizer over that of the clipped gradient, distance from 1",
            abs(total_norm(record.gradients) / (kept * size) - 1) if size else math.inf,
            0.05,
            "the gradient is scaled: unscaled twice, clipped before unscaling, or a sum instead of a mean?",
            "Unscale once, then clip, then step. Divide each batch's loss by the number of batches.",
        ),
        at_most(
            "logged norm of the gradient over that of the loss, distance from 1",
            abs(float(numbers["gradient"]) / size - 1) if size else math.inf,
            0.05,
            "the logged gradient norm is not that of the loss.",
            "Log the norm after unscaling and before clipping.",
        ),
        must_be_zero(
            "optimizer steps per training step, distance from 1",
            abs(record.steps - 1.0),
            "the optimizer does not step once per accumulated batch. Is its step outside the batch loop?",
            "Step once after the last of the accumulated batches.",
        ),
        at_least(
            "cosine between the step and the negative gradient",
            -cosine(moved, expected),
            0.0,
            "the step increases the loss: wrong sign of gradient or update.",
            "The optimizer must subtract the gradient.",
        ),
        at_most(
            "epsilon of AdamW over the root mean square of the clipped gradient",
            epsilon / max(clip / math.sqrt(numel), 1e-300) if kept < 1 else 0.0,
            _EPSILON_SHARE,
            f"clip_norm = {clip:g} is far below the usual gradient norm ({size:.2g}): what is left of the "
            "gradient is lost in the epsilon of AdamW, so steps are too small.",
            "Raise clip_norm to a few times the usual norm.",
        ),
        must_be_zero(
            "learning rates that change before the optimizer's step",
            sum(rate != rates.values for rate in record.rates[-1:]),
            "the schedule advances before the optimizer steps. The first learning rate is never used.",
            "Step the optimizer, then the schedule.",
        ),
    ]
    text = f"gradient {size:.3g}, clipped at {clip:g}, {record.steps} optimizer step"
    return [report_of("STEP", text, findings), probes.parameter_updates(learner, before, rates.values), rates]


def _changes(now: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: now[name].detach() - old for name, old in before.items()}


def check_weight_decay(case: Case) -> Report:
    """[DECAY]: the shrinkage of the weights by weight decay over the whole run."""
    steps = float(case.learner.factors.double().sum())
    decay = max(
        float(group["weight_decay"]) * float(group["highest"]) * steps
        for group in case.learner.optimizer.param_groups
    )
    finding = at_most(
        "sum over the steps of learning rate times weight decay",
        decay,
        1.0,
        "the weight decay pulls the weights to 0 faster than they can learn.",
        "Lower weight_decay. 0.01 is usual.",
    )
    return report_of("DECAY", f"weight decay alone shrinks the weights to {math.exp(-decay):.0%}", [finding])


def check_non_finite_gradient(case: Case) -> Report:
    """[FINITE]: a step with a NaN in its gradient is skipped and counted, and changes nothing."""
    learner, recordings = _trial(case)
    weights = case.spec.loss.weights
    # A regular step first, so that the moving average differs from the weights.
    learner.step(recordings, 0.1, weights)
    before, average = probes.copy_parameters(learner), {k: v.clone() for k, v in learner.average.items()}
    name, target = max(
        ((n, w) for n, w in learner.weights.items() if w.requires_grad), key=lambda pair: pair[1].numel()
    )
    handle = target.register_hook(lambda gradient: gradient * math.nan)
    numbers = learner.step(recordings, 0.1, weights)
    handle.remove()
    findings = [
        must_be_zero(
            "change of the weights by a step whose gradient is not finite",
            total_norm(_changes(learner.weights, before)),
            "a non-finite gradient is replaced by numbers or applied. Its step must be skipped.",
            "Skip the step, count it, and stop past a limit. Never use nan_to_num.",
        ),
        must_be_zero(
            "change of the averaged weights by a step whose gradient is not finite",
            total_norm(_changes(learner.average, average)),
            "the moving average is updated after a skipped step.",
            "Leave the average unchanged after a skipped step.",
        ),
        must_be_zero(
            "steps with a non-finite gradient logged as taken",
            float(numbers["taken"]),
            "a non-finite gradient is logged as a regular step.",
            "Log whether a step was taken.",
        ),
    ]
    return report_of("FINITE", f"a NaN in the gradient of {name}", findings)


def check_parameter_updates(case: Case) -> Report:
    """[DRIFT]: three steps move every parameter, none too far, and the moving average follows."""
    learner, recordings = _trial(case)
    before, average = probes.copy_parameters(learner), {k: v.clone() for k, v in learner.average.items()}
    for _ in range(3):
        learner.step(recordings, 0.1, case.spec.loss.weights)
    moved, followed = _changes(learner.weights, before), _changes(learner.average, average)
    unmoved = [name for name, change in moved.items() if float(change.abs().max()) == 0]
    share = total_norm(moved) / max(total_norm(before), 1e-30)
    findings = [
        must_be_zero(
            "parameters unchanged after three steps",
            len(unmoved),
            f"these parameters do not learn: {listed(unmoved)}.",
            "Check that they are not frozen, are in the optimizer, and affect a loss.",
        ),
        at_most(
            "relative change of all weights in three steps",
            share,
            0.5,
            "the initial weights are lost within three steps.",
            "Lower the learning rates or the weight decay.",
        ),
        at_least(
            "change of the averaged weights over that of the weights",
            total_norm(followed) / max(total_norm(moved), 1e-30),
            1e-2,
            "the moving average (EMA) of the weights is never updated, so validation uses stale weights.",
            "Update the average after every step that was taken.",
        ),
    ]
    return report_of("DRIFT", f"weights change by {share:.2%} in three steps", findings)


class _OneRecording(TrainingScenes):
    """TrainingScenes whose validation set is one given recording."""

    def __init__(self, scenes: TrainingScenes, recording: Recording) -> None:
        self.spec, self.group, self._recording = scenes.spec, scenes.group, recording

    def validation(self) -> Iterator[Recording]:
        yield self._recording

    def scored(self) -> tuple[Recording, Recording]:
        return self._recording[:2], self._recording[:2]


def check_validation(case: Case) -> Report:
    """[VALIDATION]: validation loss equals training loss on the same scenes, and follows the weights."""
    learner, recordings = _trial(case)
    spec, few = learner.spec, recordings[0]
    scenes = _OneRecording(case.trainer.scenes, few)
    beta = spec.schedule.beta
    weights = data.weights_at(spec.loss, spec.schedule, spec.schedule.epochs - 1, beta)
    own = validation.validate(learner, scenes, averaged=False)
    # With its gradient, as in training.
    trained = learner.losses(few, beta, weights)
    first = validation.validate(learner, scenes)
    off = {
        name: abs(own.terms.get(name, math.nan) - float(value.detach()))
        for name, value in trained.terms.items()
    }
    # Each term by itself: in the total, rounding errors may cancel.
    by_term = sum(trained.weights[name] * value for name, value in off.items())
    worst = max(off, key=lambda name: math.inf if math.isnan(off[name]) else off[name])
    for _ in range(3):
        learner.step(recordings, 0.1, spec.loss.weights)
    after = validation.validate(learner, scenes)
    total = float(trained.total.detach())
    with torch.no_grad():
        moved = abs(float(learner.losses(few, beta, weights).total) - total)
    findings = [
        at_most(
            "relative difference of validation and training loss for the same scenes and weights, by term",
            max(by_term, abs(own.loss - total)) / max(abs(total), 1e-9),
            # Training in less than float32 differs by that much.
            1e-5 if learner.precision is None else 5e-2,
            f"validation differs from training (most in {worst}): another matrix, precision, or dropout?",
            "Use Learner.prediction_losses for both, in float32.",
        ),
        at_least(
            "change of the validation loss in three steps, over that of the training loss",
            abs(after.loss - first.loss) / max(moved, 1e-9),
            1e-2,
            "the validation loss is constant while the weights change: stale weights, or another matrix? "
            "Weights are stale if the moving average is never updated.",
            "Validate the averaged weights, and update them after each step.",
        ),
    ]
    text = f"validation {first.loss:.4f} -> {after.loss:.4f}, training loss changed by {moved:.4f}"
    return report_of("VALIDATION", text, findings)


def check_scores(case: Case) -> Report:
    """[SCORES]: the metrics of the validation on estimates with known scores."""
    truth = case.recording.truth
    assert truth is not None
    truth = replace(truth, power=None, symbols=None).each(torch.Tensor.double)
    S, total = len(truth.azimuth), int(truth.active.sum())
    shifted = replace(truth, azimuth=truth.azimuth + math.radians(2.0))
    first = truth.each(lambda value: value[:, :1])
    share = int(first.active.sum()) / total
    first = replace(first, azimuth=first.azimuth + math.radians(2.0))
    one = torch.ones_like(truth.azimuth[:, :1])
    extra = Sources(
        azimuth=torch.cat((truth.azimuth, 1.5 * one), 1),
        elevation=torch.cat((truth.elevation, -one), 1),
        range=torch.cat((truth.range, one), 1),
    )
    # Looked up in the validation module, so that the functions are those that it uses.
    functions = vars(validation)

    def score(found: Sources) -> Score:
        return functions["score"](functions["match"](truth, found))

    beyond = score(replace(truth, azimuth=truth.azimuth + math.radians(8.0)))
    none = score(truth.each(lambda value: value[:, :1] * math.nan))
    near, partly, more = score(shifted), score(first), score(extra)
    cut = "the matching is cut to min(K, K_hat)."
    count_misses = "Count every true source without a match as a miss."
    findings = [
        at_most(
            "recall without any estimate", none.recall, 1e-6, f"misses cost nothing: {cut}", count_misses
        ),
        at_most(
            "recall with one estimate per scene, distance from the true value",
            abs(partly.recall - share),
            1e-6,
            f"misses cost nothing: {cut}",
            count_misses,
        ),
        at_most(
            "share of false alarms with one extra estimate per scene, distance from the true value",
            abs(more.false_alarms - S / (total + S)),
            1e-6,
            f"false alarms cost nothing: {cut}",
            "Count every estimate without a match as a false alarm.",
        ),
        at_most(
            "azimuth error of estimates 2 deg off, with some sources missed: distance from 2 deg",
            max(abs(near.azimuth_error_deg - 2.0), abs(partly.azimuth_error_deg - 2.0)),
            1e-3,
            "errors are not those of the hits: a penalty value for misses, or heads compared by index?",
            "Give the errors of hits alone, and misses as a share.",
        ),
    ]
    K = truth.active.sum(-1)
    alone = float((K == 1).double().mean())
    findings += [
        at_most(
            "recall of estimates 8 deg off",
            beyond.recall,
            # Another source may be there by chance.
            0.2,
            "estimates 8 deg off count as hits: the gate is wider than 5 deg.",
            "A source is hit if azimuth and elevation are each within 5 deg.",
        ),
        at_most(
            "largest error of recall, precision and F1 of estimates with known scores",
            max(
                abs(partly.f1 - 2 * share / (1 + share)),
                abs(partly.precision - 1),
                abs(more.precision - total / (total + S)),
                abs(more.recall - 1),
                abs(more.f1 - 2 * total / (2 * total + S)),
            ),
            1e-6,
            "recall, precision or F1 is not that of its definition (exchanged, or without a factor?).",
            "Precision is hits over estimates, recall hits over sources, F1 2 hits over their sum.",
        ),
        at_most(
            "error of the share of scenes with the right number of sources",
            max(abs(partly.count_right - alone), more.count_right, abs(near.count_right - 1)),
            1e-6,
            "the share of scenes with the right number of sources (count_right) counts wrong numbers too.",
            "The number is right only if it is equal to the true one.",
        ),
    ]
    return report_of("SCORES", f"{total} sources, estimates with known scores", findings)


def check_short_run(case: Case) -> Report:
    """[LOOP]: two short epochs of the training loop, with the optimizer recorded."""
    batch = min(_BATCH, case.spec.batch)
    total = _EPOCHS * _STEPS
    spec = case.spec.replace(
        schedule=case.spec.schedule.replace(epochs=_EPOCHS, warm_up=0.5),
        batch=batch,
        accumulation=1,
        scenes_per_epoch=batch * _STEPS,
        validation_scenes=batch,
        scored_scenes=2,
        log_steps=2,
        save_minutes=1e6,
        save_steps=0,
        patience=0,
        skipped_max=total,
    )
    trainer = case.start(spec)
    planned = [data.learning_rate_factor(spec.schedule, step, total) for step in range(total)]
    highest = _highest_rates(trainer.learner)
    with recorded(trainer.learner) as record:
        trainer.train()
    logged, epochs = trainer.run.records("step"), trainer.run.records("epoch")
    off = max(
        (
            abs(rate[name] - factor * highest[name]) / max(highest[name], 1e-30)
            for rate, factor in zip(record.rates, planned, strict=False)
            for name in rate
        ),
        default=math.inf,
    )
    losses = [float(str(line["loss"])) for line in logged if "loss" in line]
    validated = [line["validation"]["loss"] for line in epochs]
    per_epoch = record.steps / _EPOCHS
    findings = [
        must_be_zero(
            "optimizer steps per epoch, distance from the number of batches",
            abs(per_epoch - _STEPS),
            f"{per_epoch:g} optimizer steps per epoch for {_STEPS} batches. The optimizer's step is outside "
            "the batch loop, or in another loop.",
            "Step once per batch, or once per accumulation of batches.",
        ),
        at_most(
            "largest distance of a learning rate from the plan, over the highest rate",
            off,
            1e-3,
            "the loop does not follow the schedule: it ticks in epochs, ahead of the optimizer, or never.",
            "Step the optimizer, then the schedule, once each.",
        ),
        must_be_zero(
            "number of logged steps, distance from the planned number",
            abs(len(logged) - total),
            "the log does not contain every step.",
            "Log each step once.",
        ),
        must_be_zero(
            "logged losses that are not finite",
            sum(not math.isfinite(loss) for loss in losses),
            "the loss is NaN or infinite.",
            "Find the term, and stop at the first such step.",
        ),
        at_least(
            "change of the validation loss from epoch to epoch",
            abs(validated[-1] - validated[0]) if len(validated) > 1 else 0.0,
            1e-7,
            "the validation loss is constant: it uses stale weights, or a network that is not trained.",
            "Validate the trained weights or their average, on the matrix that is trained.",
        ),
    ]
    text = f"{_EPOCHS} epochs of {_STEPS} batches: {record.steps} optimizer steps"
    return report_of("LOOP", text, findings)


def check_overfit(case: Case, scenes: int = OVERFIT_SCENES, epochs: int = OVERFIT_EPOCHS) -> Report:
    """[OVERFIT]: can the network fit a few hundred fixed scenes? Takes minutes."""
    batch = min(_OVERFIT_BATCH, case.spec.batch, scenes)
    spec = case.spec.replace(
        schedule=case.spec.schedule.replace(epochs=epochs),
        scenes_per_epoch=scenes // batch * batch,
        batch=batch,
        accumulation=1,
        fresh=False,
        hidden_noise=0.0,
        validation_scenes=4,
        scored_scenes=2,
        patience=0,
    )
    trainer = case.start(spec)
    trainer.train()
    log = trainer.run.records("epoch")
    first, last = (float(line["training"]["covariance_predicted"]) for line in (log[0], log[-1]))
    finding = at_most(
        f"covariance error of R_pred after {epochs} epochs on the same {scenes} scenes, over the first",
        last / first,
        _OVERFIT_LEFT,
        "the network cannot fit a few scenes: factors that do not learn, too small, or wrong labels?",
        "See [GRADPATH], [CONSTANT] and [TRUTH]. Then try a wider network or a higher learning rate.",
    )
    return report_of("OVERFIT", f"covariance error {first:.3f} -> {last:.3f}", [finding])
