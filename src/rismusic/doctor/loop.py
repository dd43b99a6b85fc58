"""The plan of the whole run, and the loop itself on a few batches: steps, rates, epochs, validation."""

from __future__ import annotations

import math

import torch

from rismusic.doctor.case import Case, told
from rismusic.doctor.stepping import watched
from rismusic.nn import schedules
from rismusic.nn.monitors import Report, at_least, at_most

# Size of the short training: epochs, steps of each, scenes of a batch.
_EPOCHS, _STEPS, _BATCH = 2, 3, 4


def replay(case: Case) -> Report:
    """The learning rate of every optimizer step of the planned run, and beta of every epoch."""
    spec, learner = case.spec, case.learner
    factors = learner.factors.double().cpu()
    planned = spec.steps_per_epoch * spec.schedule.epochs
    highest = {str(g["name"]): float(g["highest"]) for g in learner.optimizer.param_groups}
    peak = int(factors.argmax()) if len(factors) else 0
    findings = [
        at_most(
            "steps that the schedule is made for, distance from those of the run",
            float(abs(len(factors) - planned)),
            0.0,
            "the schedule counts something else than optimizer steps (batches, epochs?).",
            "Count optimizer steps: scenes / (batch x accumulation), times epochs.",
        ),
        at_least(
            "least factor of the learning rate in the run",
            float(factors.min()),
            1e-6,
            "the learning rate is 0 at some step, such as the first one.",
            "Let the first step be at 1 / warm-up, not at 0.",
        ),
        at_least(
            "largest factor of the learning rate in the run",
            float(factors.max()),
            0.9,
            "the learning rate never reaches its highest: a schedule counted in batches and stepped in "
            "epochs?",
            "Step the schedule once for each optimizer step.",
        ),
        at_most(
            "share of the run in which the learning rate rises",
            (peak + 1) / max(1, len(factors)) - 1 / max(1, len(factors)),
            0.5,
            "the warm-up takes most of the run: a schedule counted in batches and stepped in epochs?",
            "Step the schedule once for each optimizer step.",
        ),
    ]
    if planned >= 8:
        findings += [
            at_most(
                "last factor of the learning rate",
                float(factors[-1]),
                spec.schedule.learning_rate_floor + 0.1,
                "the learning rate never falls: the schedule does not reach its end within the run.",
                "Step the schedule once for each optimizer step, over all of them.",
            ),
            at_least(
                "different learning rates, over the steps",
                len(factors.unique()) / planned,
                0.4,
                "the learning rate changes in jumps, once an epoch.",
                "Step the schedule once for each optimizer step.",
            ),
        ]
    for name, rate in highest.items():
        findings += [
            at_least(
                f"highest learning rate of {name}",
                rate,
                1e-7,
                "nothing is learned.",
                "A learning rate of 1e-4 to 1e-3 is usual for AdamW.",
            ),
            at_most(
                f"highest learning rate of {name}",
                rate,
                0.05,
                "every step moves each weight by as much as weights are large: it diverges.",
                "A learning rate of 1e-4 to 1e-3 is usual for AdamW.",
            ),
        ]
    epochs = range(spec.schedule.epochs)
    betas = [schedules.beta_at(spec.schedule, epoch, spec.seed) for epoch in epochs]
    findings += [
        at_most(
            "beta of the first epoch",
            betas[0],
            1e-6,
            "R_samp stands in for R_pred from the start, before R_pred has learned anything.",
            "Let beta rise from 0.",
        ),
        at_most(
            "largest beta",
            max(betas),
            0.999,
            "R_pred has no part in R_blend.",
            "Lower schedule.beta below 1.",
        ),
        at_least(
            "largest beta over that of the settings",
            max(betas) / spec.schedule.beta if spec.schedule.beta > 0 and len(betas) > 2 else 1.0,
            0.8,
            "beta never rises to what inference uses.",
            "Count epochs, not steps, in the ramp of beta.",
        ),
    ]
    text = f"{planned} steps, highest at {peak}; beta {betas[0]:.2f} to {betas[-1]:.2f}"
    return told("SCHEDULE", text, findings)


def short_run(case: Case) -> Report:
    """The loop as it is, on a few small batches, the optimizer watched."""
    batch = min(_BATCH, case.spec.batch)
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
        skipped_max=_EPOCHS * _STEPS,
    )
    trainer = case.begin(spec)
    planned = [
        schedules.learning_rate_factor(spec.schedule, i, _EPOCHS * _STEPS) for i in range(_EPOCHS * _STEPS)
    ]
    highest = {str(g["name"]): float(g["highest"]) for g in trainer.learner.optimizer.param_groups}
    with watched(trainer.learner) as seen:
        trainer.train()
    logged = trainer.run.records("step")
    epochs = trainer.run.records("epoch")
    off = max(
        (
            abs(rate[name] - factor * highest[name]) / max(highest[name], 1e-30)
            for rate, factor in zip(seen.rates, planned, strict=False)
            for name in rate
        ),
        default=math.inf,
    )
    terms = [float(str(line["loss"])) for line in logged if "loss" in line]
    # Of the network's own weights: the last epoch's moving average may lag behind.
    losses = [line["validation"]["loss"] for line in epochs]  # type: ignore[index]
    moved = abs(losses[-1] - losses[0]) if len(losses) > 1 else 0.0
    findings = [
        at_most(
            "optimizer steps in an epoch, distance from the number of batches",
            abs(seen.steps / _EPOCHS - _STEPS),
            0.0,
            f"{seen.steps / _EPOCHS:g} optimizer steps an epoch where there are {_STEPS} batches: the "
            "optimizer's step "
            "is outside the batch loop, or inside another one.",
            "Step once for each batch (or for each accumulation of them).",
        ),
        at_most(
            "largest distance of a step's learning rate from the plan, over the highest",
            off,
            1e-3,
            "the loop does not follow the schedule: it ticks in epochs, ahead of the optimizer, or not at "
            "all.",
            "Step the optimizer, then the schedule, once each.",
        ),
        at_most(
            "logged steps, distance from the planned ones",
            float(abs(len(logged) - _EPOCHS * _STEPS)),
            0.0,
            "the log does not hold every step.",
            "Log each step once.",
        ),
        at_most(
            "logged losses that are not finite",
            float(len(terms) - int(torch.tensor(terms).isfinite().sum())),
            0.0,
            "the loss is not finite.",
            "See which term, and stop at the first.",
        ),
        at_least(
            "change of the validation loss from epoch to epoch",
            moved,
            1e-7,
            "the validation loss is constant: it looks at stale weights, or at something that does not "
            "learn.",
            "Validate the weights that learn, or their average, on the matrix that is learned.",
        ),
    ]
    return told("LOOP", f"{_EPOCHS} epochs of {_STEPS} batches: {seen.steps} optimizer steps", findings)
