"""One trial: a training that can be stopped early, the settings of inference, and the cost."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from rismusic.nn.run_folder import BEST
from rismusic.nn.spec import LossSpec, TrainSpec
from rismusic.nn.train import train
from rismusic.nn.validation import Validation
from rismusic.tuning.failures import NotFiniteError, Say, Surplus, reason_kept
from rismusic.tuning.inference import Inference, suggest, tune_inference
from rismusic.tuning.ledger import REASON, SURPLUS, is_surplus
from rismusic.tuning.scoring import Judged, judge, knob_scenes, locate_in, objective_scenes
from rismusic.tuning.space import Space, apply
from rismusic.tuning.spec import TuneSpec
from rismusic.tuning.storage import WORKER

# Terms of the validation that depend neither on beta nor on any weight that is searched.
_WEIGHTS = LossSpec().weights
SURROGATE = {
    "covariance_predicted": _WEIGHTS["covariance"],
    **{name: _WEIGHTS[name] for name in ("count", "angle", "log_range", "existence", "heat_map")},
}


@dataclass(frozen=True)
class Work:
    """What a trial needs to know.

    Args:
        spec: settings of the search.
        space: what is searched.
        trials: of the first stage.
        folder: where runs go.
        worker: the name of this process.
        device: where to work.
        say: called with each line for the console.
    """

    spec: TuneSpec
    space: Space
    trials: int
    folder: Path
    worker: str
    device: str
    say: Say

    def sign(self, trial: optuna.Trial, wanted: int, *, jobs: bool) -> None:
        """Say whose trial it is.

        Raises:
            Surplus: nobody needs it.
        """
        trial.set_user_attr(WORKER, self.worker)
        trial.set_user_attr(REASON, "")
        if is_surplus(trial.study.get_trials(deepcopy=False), trial.number, wanted, jobs=jobs):
            trial.set_user_attr(SURPLUS, True)
            raise Surplus(f"trial {trial.number} is not needed")


def surrogate(validation: Validation) -> float:
    """What trials are stopped by: the terms of the validation that mean the same in all of them."""
    return sum(weight * validation.terms[name] for name, weight in SURROGATE.items())


def short_trial(work: Work, trial: optuna.Trial) -> float:
    """A trial of the first stage.

    Raises:
        Surplus: one trial too many.
        optuna.TrialPruned: it does badly.
        InputError, RuntimeError, ArithmeticError: see
            :data:`rismusic.tuning.failures.EXPECTED`; the reason is kept with the trial.
    """
    spec = work.spec
    work.sign(trial, work.trials, jobs=False)
    with reason_kept(trial):
        values = suggest(trial, work.space.training)
        training = apply(spec.short_training(), work.space.training, values)
        pruned = trained(work, trial, training, folder_of(work.folder, trial))
        if pruned:
            raise optuna.TrialPruned
        inference, judged = judged_after(work, trial, training, folder_of(work.folder, trial) / BEST)
        work.say(
            f"trial {trial.number}: cost {judged.cost:.4f} (F1 {judged.f1:.3f}, "
            f"GOSPA {judged.mean_gospa_m:.3f} m), inference {shown(inference.values)}"
        )
        return judged.cost


def trained(work: Work, trial: optuna.Trial, training: TrainSpec, folder: Path) -> bool:
    """Train, and tell the study of every epoch; whether it stopped the training."""
    epochs: list[dict[str, float]] = []
    pruned = False
    begun = time.monotonic()

    def watch(epoch: int, validation: Validation) -> bool:
        nonlocal pruned
        value = surrogate(validation)
        blend = validation.scores["blend"]
        epochs.append({"surrogate": value, "loss": validation.loss, "f1": blend.f1, "gospa_m": blend.gospa_m})
        if not math.isfinite(value) or not math.isfinite(validation.loss):
            raise NotFiniteError(f"the validation loss of epoch {epoch} is {validation.loss}")
        trial.report(value, epoch)
        trial.set_user_attr("epochs", epochs)
        trial.set_user_attr("seconds", time.monotonic() - begun)
        # Optuna says it as a numpy.bool.
        pruned = bool(trial.should_prune())
        return pruned

    train(training, out=folder, device=work.device, on_epoch=watch)
    last = epochs[-1]
    said = "pruned" if pruned else "trained"
    work.say(f"trial {trial.number}: {said} after {len(epochs)} epochs, surrogate {last['surrogate']:.4f}")
    return pruned


def judged_after(
    work: Work, trial: optuna.Trial, training: TrainSpec, weights: Path
) -> tuple[Inference, Judged]:
    """The settings of inference on the trained network, and what it is worth with them."""
    spec, system = work.spec, training.system
    start = locate_in(system, spec.locate, weights)
    inference = tune_inference(
        knob_scenes(system, spec.seed, spec.knob_scenes, work.device),
        start,
        work.space.locate,
        trials=spec.inference_trials,
        seed=spec.seed,
    )
    judged = judge(objective_scenes(system, spec.seed, spec.objective_scenes, work.device), inference.spec)
    trial.set_user_attr("locate", inference.values)
    trial.set_user_attr("knob_cost", [inference.before, inference.cost])
    keep(trial, "judged", judged)
    return inference, judged


def keep(trial: optuna.Trial, name: str, judged: Judged) -> None:
    """Keep what was found in each scene with the trial."""
    trial.set_user_attr(name, asdict(judged))


def kept(trial: FrozenTrial, name: str) -> Judged:
    """What :func:`keep` has kept."""
    return Judged(**{field: tuple(values) for field, values in trial.user_attrs[name].items()})


def folder_of(folder: Path, trial: optuna.Trial | FrozenTrial) -> Path:
    """The run folder of a trial."""
    return folder / f"{trial.number:04d}"


def shown(values: Mapping[str, Any]) -> str:
    """Values of knobs, for people."""
    parts = (
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
    )
    return ", ".join(parts) or "as it was"
