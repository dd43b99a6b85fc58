"""Checks of parts of a training: first steps, schedule, one optimizer step, scores."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from rismusic.doctor import references as ref
from rismusic.doctor.case import Case
from rismusic.doctor.hypotheses import explanation
from rismusic.doctor.loss_checks import gradients_by
from rismusic.doctor.references import cosine, total_norm
from rismusic.doctor.report import Findings, report_of
from rismusic.io import Recording
from rismusic.nn import data
from rismusic.nn import monitors as probes
from rismusic.nn.data import TrainingScenes
from rismusic.nn.learner import Learner
from rismusic.nn.monitors import MIN_DECREASE, OverfitResult, Report, at_least, at_most, overfit_one_batch
from rismusic.nn.spec import TrainSpec

# Scenes in the batch of the overfit_one_batch test, and in the batches of a trial step.
_LITMUS_BATCH, _TRIAL_BATCH = 32, 8
# Share of the decrease that gradient and learning rate promise, and least decrease in any case.
_SHARE_OF_POSSIBLE, _LEAST_DECREASE = 0.3, 1e-3
# AdamW divides by the size of the gradient plus its epsilon, which may be this share of the clipped gradient.
_EPSILON_SHARE = 0.1


def check_first_steps(case: Case) -> Report:
    """[LITMUS]: five steps on one batch reduce its loss."""
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

    def trained_at(factor: float) -> tuple[OverfitResult, float]:
        batch = min(_LITMUS_BATCH, case.spec.batch)
        spec = case.spec.replace(
            batch=batch,
            accumulation=1,
            scenes_per_epoch=8 * batch,
            backbone_learning_rate=case.spec.backbone_learning_rate * factor,
            head_learning_rate=case.spec.head_learning_rate * factor,
            clip_norm=1e9,
        )
        result = overfit_one_batch(spec, make=make)
        return result, sum(expected) / max(abs(result.before), 1e-12)

    trained, possible = trained_at(1.0)
    if case.spec.schedule.warm_up > 0 and possible > 1 and trained.decrease < MIN_DECREASE:
        # Rates at which the gradient promises more than the whole loss come after the warm-up only. Before
        # that, the training passes those at which it promises half of it.
        trained, possible = trained_at(0.5 / possible)
    finding = at_least(
        "relative decrease of the loss in five steps on one batch",
        trained.decrease,
        min(MIN_DECREASE, max(_SHARE_OF_POSSIBLE * possible, _LEAST_DECREASE)),
        f"the network does not learn even one batch; gradient and learning rates allow {possible:.1%}.",
        "Raise the learning rates if they allow less than 1 %. Else look for a gradient that is not that of "
        "the loss.",
    )
    return report_of("LITMUS", f"loss {trained.before:.3f} -> {trained.after:.3f}", [finding])


def check_schedule(case: Case) -> Report:
    """[SCHEDULE]: learning rate of every optimizer step and beta of every epoch, against the settings."""
    spec, factors = case.spec, case.learner.factors.double().cpu()
    planned = spec.steps_per_epoch * spec.schedule.epochs
    define = partial(ref.planned_rate_factors, spec.schedule, planned)
    expected = define()
    off, text = math.inf, f"it has {len(factors)} steps, the training {planned} (batches or epochs instead?)"
    if len(factors) == planned:
        distance = (factors - expected).abs()
        off, worst = float(distance.max()), int(distance.argmax())
        text = f"the learning rate is {float(factors[worst]):.3g} times the highest at step {worst}, not "
        text += f"{float(expected[worst]):.3g}" + (explanation([factors], [define]) if off > 1e-3 else "")
        if bool((factors == 0).any()) and spec.schedule.learning_rate_floor > 0:
            text = "the learning rate is 0 at some step, such as the first one"
    peak = int(expected.argmax())
    findings = Findings()
    findings.at_most(
        "largest distance of the factors of the learning rate from the schedule of the settings",
        off,
        1e-3,
        f"the schedule is not that of the settings: {text}.",
        "Advance it once per optimizer step: scenes / (batch x accumulation), times epochs.",
    )
    meaning = "the warm-up takes most of the run."
    findings.at_most(
        "share of the run in which the learning rate rises", peak / max(1, planned), 0.5, meaning
    )
    usual = "A learning rate of 1e-4 to 1e-3 is usual for AdamW."
    for group in case.learner.optimizer.param_groups:
        name, rate = f"highest learning rate of {group['name']}", float(group["highest"])
        findings.at_least(name, rate, 1e-7, "nothing is learned.", usual)
        findings.at_most(
            name, rate, 0.05, "each step changes weights by their own size: the training diverges.", usual
        )
    betas = [data.beta_at(spec.schedule, epoch, spec.seed) for epoch in range(spec.schedule.epochs)]
    plan = [ref.planned_beta(spec.schedule, epoch) for epoch in range(spec.schedule.epochs)]
    findings.at_most(
        "largest distance of beta from the settings, beyond its jitter",
        max(abs(one - beta) - jitter for one, (beta, jitter) in zip(betas, plan, strict=True)),
        0.0,
        f"beta goes from {betas[0]:.3g} to {betas[-1]:.3g}, the settings have {plan[0][0]:.3g} to "
        f"{plan[-1][0]:.3g}.",
        "Let beta rise from 0 to schedule.beta, which inference uses. Count epochs, not steps.",
    )
    findings.at_most("largest beta", max(betas), 0.999, "R_pred has no part in R_blend.")
    text = f"{planned} steps, highest rate at step {peak}; beta {betas[0]:.2f} to {betas[-1]:.2f}"
    return report_of("SCHEDULE", text, findings)


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


def check_step(case: Case) -> Report:
    """[STEP]: at the clip norm of the settings, the optimizer gets the clipped gradient of the loss."""
    learner, recordings = _trial(case)
    weights, beta, clip = case.spec.loss.weights, 0.1, case.spec.clip_norm
    parameters = {name: weight for name, weight in learner.weights.items() if weight.requires_grad}
    loss = torch.stack([learner.losses(one, beta, weights).total for one in recordings]).mean()
    expected = gradients_by(parameters, loss)
    got: dict[str, Tensor] = {}

    def before_step(*_: object) -> None:
        got.update({n: w.grad.detach().clone() for n, w in learner.weights.items() if w.grad is not None})

    handle = learner.optimizer.register_step_pre_hook(before_step)
    learner.step(recordings, beta, weights)
    handle.remove()
    size = total_norm(expected)
    kept = min(1.0, clip / size) if size else 1.0
    numel = sum(value.numel() for value in expected.values())
    epsilon = max(float(group.get("eps", 0.0)) for group in learner.optimizer.param_groups)
    lost = (
        f"the epsilon is {epsilon:g}" if epsilon > 1e-8 else "clip_norm is far below the usual gradient norm"
    )
    findings = Findings()
    findings.at_least(
        "cosine between the gradient in the optimizer and that of the loss",
        cosine(got, expected),
        0.99,
        "the optimizer does not get the gradient of the loss: reversed (the wrong sign), replaced by "
        "numbers, clipped by value, or a batch left out of the accumulation?",
        "Call backward on each batch's loss over the number of batches. Leave the gradients unchanged.",
    )
    findings.at_most(
        "norm of the gradient in the optimizer over that of the clipped gradient, distance from 1",
        abs(total_norm(got) / (kept * size) - 1) if size else math.inf,
        0.05,
        "the gradient is scaled: unscaled twice, clipped before unscaling, or a sum instead of a mean?",
        "Unscale once, then clip, then step. Divide each batch's loss by the number of batches.",
    )
    findings.at_most(
        "epsilon of AdamW over the root mean square of the clipped gradient",
        epsilon / max(clip / math.sqrt(numel), 1e-300) if kept < 1 else 0.0,
        _EPSILON_SHARE,
        f"what is left of the gradient ({size:.2g}) at clip_norm = {clip:g} is lost in the epsilon of "
        f"AdamW, so steps are too small: {lost}.",
        "Use an epsilon of 1e-8, and a clip_norm of a few times the usual norm.",
    )
    return report_of("STEP", f"gradient {size:.3g}, clipped at {clip:g}", findings)


def check_weight_decay(case: Case) -> Report:
    """[DECAY]: the shrinkage of the weights by weight decay over the whole run."""
    steps = float(case.learner.factors.double().sum())
    decay = max(
        float(group["weight_decay"]) * float(group["highest"]) * steps
        for group in case.learner.optimizer.param_groups
    )
    meaning = "the weight decay pulls the weights to 0 faster than they can learn."
    advice = "Lower weight_decay. 0.01 is usual."
    finding = at_most("sum over the steps of learning rate times weight decay", decay, 1.0, meaning, advice)
    return report_of("DECAY", f"weight decay alone shrinks the weights to {math.exp(-decay):.0%}", [finding])


def check_non_finite_gradient(case: Case) -> Report:
    """[FINITE]: a step with a NaN in its gradient is skipped and counted, and changes nothing."""
    learner, recordings = _trial(case)
    weights = case.spec.loss.weights
    # A regular step first, so that the moving average differs from the weights.
    learner.step(recordings, 0.1, weights)
    before, average = probes.copy_parameters(learner), {k: v.clone() for k, v in learner.average.items()}
    trained = {name: weight for name, weight in learner.weights.items() if weight.requires_grad}
    name, target = max(trained.items(), key=lambda pair: pair[1].numel())
    handle = target.register_hook(lambda gradient: gradient * math.nan)
    numbers = learner.step(recordings, 0.1, weights)
    handle.remove()
    findings = Findings()
    findings.must_be_zero(
        "change of the weights by a step whose gradient is not finite",
        total_norm({name: learner.weights[name].detach() - old for name, old in before.items()}),
        "a non-finite gradient is replaced by numbers or applied. Its step must be skipped.",
        "Skip the step, count it, and stop past a limit. Never use nan_to_num.",
    )
    findings.must_be_zero(
        "change of the averaged weights by a step whose gradient is not finite",
        total_norm({name: learner.average[name] - old for name, old in average.items()}),
        "the moving average is updated after a skipped step.",
    )
    findings.must_be_zero(
        "steps with a non-finite gradient logged as taken",
        float(numbers["taken"]),
        "a non-finite gradient is logged as a regular step.",
    )
    return report_of("FINITE", f"a NaN in the gradient of {name}", findings)
