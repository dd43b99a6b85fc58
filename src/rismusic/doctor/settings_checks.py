"""Every setting of a training, by its effect: another value changes what it should, and nothing else.

A small training is made for another value of each setting, and compared with that of the usual value in what
it draws, holds, plans, and does in a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from rismusic.doctor.case import Case
from rismusic.doctor.report import must_be_zero, report_of
from rismusic.io import Recording
from rismusic.nn.data import beta_at, weights_at
from rismusic.nn.monitors import Report
from rismusic.nn.spec import TrainSpec

# Settings of the small training that the effects are measured in.
_BASE: dict[str, object] = {
    "system.panel.rows": 4,
    "system.panel.columns": 6,
    "system.channel.antennas": 4,
    "system.codebook.snapshots": 6,
    "system.sources": (1, 3),
    "system.scene.separation_deg": 4.0,
    "network.sources_max": 3,
    "network.oversampling": 1.5,
    "network.stages": 2,
    "network.depth": 1,
    "network.width": 8,
    "network.kernel": 3,
    "network.heads": 2,
    "schedule.epochs": 10,
    "scenes_per_epoch": 16,
    "batch": 4,
    "accumulation": 1,
    "validation_scenes": 4,
    "scored_scenes": 3,
}
# Other values, and what they change: scenes of training (t), validation (v) and scores (s), initial weights
# (w), search grid (g), learning rates and decay of each step (r), plan of beta and weights of the losses (p),
# output in validation (o), gradient and loss of a step (l), change of weights (c) and of averages (a) in it.
_EFFECTS: tuple[tuple[str, object, str], ...] = (
    *(
        (f"system.{name}", value, "tvs")
        for name, value in (
            ("snr_db", (0.0, 5.0)),
            ("sources", (2, 3)),
            ("one_link", True),
            ("scene.separation_deg", 40.0),
            ("scene.power", "path_loss"),
            ("scene.power_spread_db", 12.0),
            ("scene.symbols", "qpsk"),
            ("scene.correlation", 0.7),
            ("channel.kind", "rayleigh"),
            ("channel.antenna_spacing_wavelengths", 0.8),
            ("channel.distance_m", 20.0),
            ("channel.azimuth_max_deg", 20.0),
            ("channel.elevation_max_deg", 5.0),
            ("channel.rician_factor_db", 20.0),
            ("codebook.kind", "dft"),
            ("codebook.bits", 1),
            ("impulses.fraction", 0.3),
            ("hardware.static_phase_rad", 0.4),
            ("hardware.code_phase_rad", 0.4),
            ("hardware.gain", 0.4),
            ("hardware.dead_fraction", 0.4),
            ("hardware.position_wavelengths", 0.2),
        )
    ),
    *(
        (f"system.scene.{name}", value, "tvsg")
        for name, value in (
            ("azimuth_max_deg", 40.0),
            ("elevation_max_deg", 20.0),
            ("range_min_m", 0.8),
            ("range_max_m", 5.0),
        )
    ),
    ("system.panel.wavelength_m", 0.2, "tvsg"),
    ("system.panel.spacing_wavelengths", 0.4, "tvsg"),
    ("system.panel.wave", "uniform", "tvsg"),
    ("network.oversampling", 1.2, "g"),
    ("network.sources_max", 4, "w"),
    ("network.sbl_iterations", 3, "o"),
    ("network.stages", 1, "w"),
    ("network.depth", 2, "w"),
    ("network.width", 16, "w"),
    ("network.kernel", 5, "w"),
    ("network.heads", 4, "o"),
    ("network.dropout", 0.3, "l"),
    ("seed", 1, "tvswp"),
    ("hidden_noise", 0.0, "t"),
    ("fresh", False, "tvs"),
    ("batch", 8, "tr"),
    ("accumulation", 2, "tr"),
    ("scenes_per_epoch", 32, "tr"),
    ("validation_scenes", 8, "v"),
    ("scored_scenes", 4, "s"),
    ("backbone_learning_rate", 1e-3, "rca"),
    ("head_learning_rate", 1e-2, "rca"),
    ("weight_decay", 0.5, "rca"),
    ("clip_norm", 1e-6, "ca"),
    ("average_decay", 0.05, "a"),
    ("schedule.beta", 0.8, "pl"),
    ("schedule.beta_ramp", 0.6, "p"),
    ("schedule.beta_jitter", 0.2, "p"),
    ("schedule.warm_up", 0.5, "rca"),
    ("schedule.learning_rate_floor", 0.5, "r"),
    ("schedule.curriculum", True, "p"),
    ("loss.subspace_warm_up", 0.3, "p"),
    ("loss.subspace_last", (0.3, 0.4), "p"),
    ("loss.peak_contrast_last", (0.3, 0.4), "p"),
    *(
        (f"loss.{name}", 0.09, "pl")
        for name in (
            *("covariance_predicted", "subspace", "eigengap", "orthogonality", "cross", "count", "angle"),
            *("log_range", "existence", "heat_map"),
        )
    ),
    ("loss.covariance", 2.0, "pl"),
)
_WORDS = {
    "t": "training scenes",
    "v": "validation scenes",
    "s": "scored scenes",
    "w": "initial weights",
    "g": "search grid",
    "r": "learning rates and weight decay",
    "p": "plan of beta and of the loss weights",
    "o": "output of the validation",
    "l": "loss of a step",
    "c": "change of the weights in a step",
    "a": "change of the averaged weights in a step",
}
# What follows from a change of something else, and is not compared then.
_FOLLOWS = {
    "t": "lcao",
    "v": "",
    "s": "",
    "w": "olca",
    "g": "olcaw",
    "o": "lca",
    "l": "ca",
    "c": "a",
    "p": "l",
    "r": "ca",
    "a": "",
}


def with_setting(spec: Any, name: str, value: object) -> Any:
    """Settings with one of them changed, by its dotted name."""
    first, _, rest = name.partition(".")
    return spec.replace(**{first: with_setting(getattr(spec, first), rest, value) if rest else value})


def _numbers(recording: Recording) -> Tensor:
    truth = recording.truth
    assert truth is not None
    assert recording.noise_variance is not None
    parts = [torch.view_as_real(recording.snapshots).flatten(), recording.noise_variance.flatten()]
    parts += [one.nan_to_num().flatten() for one in (truth.azimuth, truth.elevation, truth.range)]
    return torch.cat([part.double().cpu() for part in parts])


def _measured(case: Case, spec: TrainSpec, recording: Recording | None) -> dict[str, Tensor]:
    """What a training of these settings draws, holds, plans and does with a batch."""
    trainer = case.start(spec)
    learner, scenes = trainer.learner, trainer.scenes
    steps = range(2)
    first = [one for step in steps for one in scenes.step(1, step % spec.steps_per_epoch)]
    found = {
        "t": torch.cat([_numbers(one) for one in first]),
        "v": torch.cat([_numbers(one) for one in scenes.validation()]),
        "s": _numbers(scenes.scored()[1]),
        "w": torch.cat([value.detach().flatten() for value in learner.weights.values()]),
        "g": torch.cat(
            [
                *(getattr(learner.grid, name) for name in ("u_x", "u_y", "q")),
                learner.grid.steering().real.flatten(),
            ]
        ),
    }
    groups = learner.optimizer.param_groups
    rates = [torch.tensor([group["highest"], group["weight_decay"]]) for group in groups]
    found["r"] = torch.cat((*rates, learner.factors.cpu()))
    plan = []
    for epoch in range(spec.schedule.epochs):
        beta = beta_at(spec.schedule, epoch, spec.seed)
        plan.append([beta, *weights_at(spec.loss, spec.schedule, epoch, beta).values()])
    found["p"] = torch.tensor(plan)
    batch = first[0] if recording is None else recording
    if learner.grid.panel.size == batch.panel.size:
        output = learner.predict(batch, averaged=True)
        found["o"] = torch.cat(
            [output.count_logits.flatten(), output.azimuth.flatten(), output.existence_logits.flatten()]
        )
        before = {
            n: [v.detach().clone() for v in some.values()]
            for n, some in (("c", learner.weights), ("a", learner.average))
        }
        # Each batch of the step is the same, so that its number has no effect.
        numbers = learner.step([batch] * spec.accumulation, spec.schedule.beta, spec.loss.weights)
        found["l"] = torch.stack([numbers["loss"], numbers["gradient"]])
        for name, some in (("c", learner.weights), ("a", learner.average)):
            found[name] = torch.cat(
                [(v.detach() - old).flatten() for v, old in zip(some.values(), before[name], strict=True)]
            )
    return found


def _changed(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> str:
    def same(a: Tensor, b: Tensor) -> bool:
        return a.shape == b.shape and float((a - b).double().norm()) <= 1e-5 * float(a.double().norm())

    return "".join(name for name in one if name not in two or not same(one[name], two[name]))


def _wrong(changed: str, expected: str) -> Iterator[str]:
    """What does not change, though it should, and the reverse."""
    follows = {name for cause in expected for name in _FOLLOWS[cause]}
    if missing := [_WORDS[name] for name in expected if name not in changed]:
        yield f"does not change the {' and the '.join(missing)}"
    if others := [_WORDS[name] for name in changed if name not in expected and name not in follows]:
        yield f"changes the {' and the '.join(others)}"


def check_settings(case: Case) -> Report:
    """[SETTINGS]: the effect of another value of every setting in a small training."""
    base: Any = TrainSpec()
    groups: dict[str, dict[str, object]] = {}
    for name, value in _BASE.items():
        group, _, last = name.rpartition(".")
        groups.setdefault(group, {})[last] = value
    system = base.system.replace(
        panel=base.system.panel.replace(**groups["system.panel"]),
        channel=base.system.channel.replace(**groups["system.channel"]),
        codebook=base.system.codebook.replace(**groups["system.codebook"]),
        scene=base.system.scene.replace(**groups["system.scene"]),
        **groups["system"],
    )
    base = base.replace(
        system=system,
        network=base.network.replace(**groups["network"]),
        schedule=base.schedule.replace(**groups["schedule"]),
        **groups[""],
    )
    batch = next(iter(case.start(base).scenes.step(0, 0)))
    usual = _measured(case, base, batch)
    findings = []
    for name, value, expected in _EFFECTS:
        found = _measured(case, with_setting(base, name, value), batch)
        texts = list(_wrong(_changed(usual, found), expected))
        findings.append(
            must_be_zero(
                f"effects of the setting {name} that are not as documented",
                len(texts),
                f"{name} = {value} {', and '.join(texts)}: it is not used where it should be.",
                f"Look for the places that read {name}.",
            )
        )
    return report_of("SETTINGS", f"{len(findings)} settings, by the effect of another value", findings)
