"""A search from Python: begin a study, join one on another machine, or resume one."""

from __future__ import annotations

import hashlib
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import optuna
import torch
from optuna.exceptions import DuplicatedStudyError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from pydantic import Field, ValidationError

from rismusic.errors import InputError, in_file
from rismusic.files import sweep_tree
from rismusic.spec import Record, complaint
from rismusic.text import redact
from rismusic.tuning.objective import FinalObjective, Objective, check_trials
from rismusic.tuning.results import TuneResult, candidates, check_folder, summarize, write_results
from rismusic.tuning.spec import TRIALS, Space, TuneSpec, load_space
from rismusic.tuning.storage import DATABASE, create_storage, experimental, open_storage, quiet, shown
from rismusic.tuning.worker import Progress, Say, Worker, cancel, current, failure, is_finished

# Attribute of a study: its settings, its space and the number of trials.
_SETTINGS = "settings"
# Seconds that a worker waits for the settings of a study that another one has just created.
_CREATED_S = 10.0


def tune(
    spec: TuneSpec | None = None,
    *,
    out: str | Path = "tune",
    storage: str | None = None,
    study: str = "tune",
    resume: bool = False,
    trials: int | None = None,
    device: str | None = None,
    heartbeat_s: int = 60,
    poll_s: float = 5.0,
    command: str = "",
    progress: Progress = lambda *_: None,
    say: Say = lambda _: None,
    **settings: object,
) -> TuneResult:
    """Search settings of training and inference, as ``rismusic tune`` does.

    Args:
        spec: settings of the search; the default ones if none.
        out: folder for runs and results.
        storage: URL of a database that several workers share, or an SQLite file; if none, ``study.db`` in
            ``out``.
        study: name of the study in the storage.
        resume: continue an existing study with its own settings.
        trials: number of trials; if none, 50 for a new study, and the number of the study if it is resumed.
        device: ``cpu`` or ``cuda``; if none, a GPU if there is one.
        heartbeat_s: seconds between two heartbeats of a worker; after twice as long without one its trial is
            repeated.
        poll_s: seconds between two looks at the trials of other workers.
        command: the command that was typed, for the report; passwords in it are redacted.
        progress: called with the number of finished trials and the number of all trials.
        say: called with each line for the console.
        settings: fields of :class:`~rismusic.tuning.spec.TuneSpec` to change, such as ``space="wide"``.

    Raises:
        InputError: a setting or the search space is invalid, the study exists already or has other settings,
            the database cannot be used, or too many trials failed in a row.
        KeyboardInterrupt: on Ctrl-C, after the running trial was queued again.
    """
    if resume and (spec is not None or settings):
        raise InputError(
            "resume", "cannot be combined with settings of the search, which the study has already"
        )
    if Path(study).name != study:
        raise InputError("study", f"must be a valid folder name; got {study!r}")
    if trials is not None and trials < 1:
        raise InputError("trials", f"must be at least 1; got {trials}")
    chosen = (spec or TuneSpec()).replace(**settings)
    folder = Path(out)
    if storage is None:
        exists = (folder / DATABASE).exists()
        if exists and not resume:
            raise InputError(
                str(folder), "already contains a study. Resume it (--resume), or choose another folder"
            )
        if resume and not exists:
            raise InputError(str(folder), f"contains no study to resume (there is no {DATABASE})")
    if not resume:
        space = load_space(chosen.space)
        space.check(chosen.short_training(), chosen.locate)
        wanted = _settings(chosen, space, trials or TRIALS)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")

    def begin(new: BaseStorage) -> None:
        """Put the study into a new file, so that no file without a study is left after an interruption."""
        check_folder(folder, continued=False)
        _begin(new, study, wanted)

    def check(existing: BaseStorage) -> None:
        """Check that the study can be resumed or joined, before anything is written."""
        with in_file(shown(storage, folder)):
            names = optuna.get_all_study_names(existing)
            joins = not resume and study in names
            if resume:
                _resume(existing, study)
            if joins:
                _check_settings(optuna.load_study(study_name=study, storage=existing), wanted)
            if resume or joins:  # with the final evaluations, which come last
                for name in names:
                    if name == study or name.startswith(f"{study}-long-"):
                        check_trials(optuna.load_study(study_name=name, storage=existing))
        check_folder(folder, continued=resume or joins)

    with quiet(), ExitStack() as stack:
        first = not resume and create_storage(storage, folder, begin, heartbeat_s=heartbeat_s)
        opened = stack.enter_context(
            open_storage(storage, folder, heartbeat_s=heartbeat_s, create=not resume, check=check)
        )
        if resume:
            short, chosen, space, count = _resume(opened, study)
            if trials is not None and trials != count:
                short.set_user_attr(_SETTINGS, _settings(chosen, space, trials))
                count = trials
        else:
            count = trials or TRIALS
            short, new = _begin(opened, study, wanted)
            first = first or new
            check_folder(folder, continued=not first)
        worker = Worker(opened, max_failures=chosen.max_failures, poll_s=poll_s, progress=progress, say=say)
        short.sampler = sampler(chosen, chosen.seed if first else _worker_seed(chosen.seed, worker.name))
        short.pruner = pruner(chosen)
        jobs = [str(number) for number in range(count)]
        cancel(short, opened, jobs)
        # With more trials the finalists may be others, so they get a study of their own.
        stage = f"{study}-long-{count}"
        for runs in (folder / study, folder / stage):  # of killed processes
            sweep_tree(runs)
        worker.run(short, Objective(chosen, space, folder / study, device, say), jobs)
        done = [one for one in current(short.get_trials()).values() if is_finished(one)]
        found = candidates(chosen, done)
        with in_file(shown(storage, folder)):  # values of a trial that do not suit the settings
            for candidate in found:
                candidate.training(chosen, space, chosen.seed)
        if len(found) == 1:
            reasons = [failure(trial) for trial in done if failure(trial)]
            raise InputError(
                "trials",
                f"no trial of {shown(storage, folder)} was completed; the last failure: "
                f"{(reasons or ['none'])[-1]}",
            )
        long = optuna.create_study(
            storage=opened, study_name=stage, load_if_exists=True, pruner=optuna.pruners.NopPruner()
        )
        with in_file(shown(storage, folder)):  # created after the check above, by another worker
            check_trials(long)
        objective = FinalObjective(chosen, space, folder / stage, device, say, found)
        worker.run(long, objective, objective.jobs())
        result = summarize(objective, done, long.get_trials(), folder=folder, command=redact(command))
        write_results(result, short, say)
    return result


def _settings(spec: TuneSpec, space: Space, trials: int) -> dict[str, Any]:
    return {"spec": spec.model_dump(mode="json"), "space": space.model_dump(mode="json"), "trials": trials}


def _begin(storage: BaseStorage, name: str, settings: dict[str, Any]) -> tuple[optuna.Study, bool]:
    """Create a study, or join one that another worker has created with these settings; whether it is new."""
    try:
        study, new = optuna.create_study(storage=storage, study_name=name), True
    except DuplicatedStudyError:
        study, new = optuna.load_study(study_name=name, storage=storage), False
        until = time.monotonic() + _CREATED_S
        while _SETTINGS not in study.user_attrs and time.monotonic() < until:
            time.sleep(0.1)
        _check_settings(study, settings)
        check_trials(study)
    study.set_user_attr(_SETTINGS, settings)
    return study, new


def _check_settings(study: optuna.Study, settings: dict[str, Any]) -> None:
    """Check that an existing study can be joined: it has these settings, or none yet and no trials."""
    held = study.user_attrs.get(_SETTINGS)
    if held == settings or (held is None and not study.get_trials(deepcopy=False)):
        return
    if held is None:
        raise InputError(
            "study", f"{study.study_name!r} was not written by rismusic tune; choose another name (--study)"
        )
    raise InputError(
        "study",
        f"{study.study_name!r} exists in this storage with other settings. Use the same settings to join it, "
        "resume it, or choose another name",
    )


def _resume(storage: BaseStorage, name: str) -> tuple[optuna.Study, TuneSpec, Space, int]:
    """Load a study with its settings, its space and its number of trials."""
    known = optuna.get_all_study_names(storage)
    if name not in known:
        raise InputError(
            "study", f"there is no study {name!r} to resume; the storage has: {', '.join(known) or 'none'}"
        )
    study = optuna.load_study(study_name=name, storage=storage)
    try:
        held = _Held.model_validate(study.user_attrs.get(_SETTINGS))
        return study, TuneSpec(**held.spec), Space(**held.space), held.trials
    except (InputError, ValidationError) as error:
        reason = complaint(error) if isinstance(error, ValidationError) else str(error)
        raise InputError(
            "study", f"{name!r} was not written by this version of rismusic tune ({reason})"
        ) from None


class _Held(Record):
    """The settings of a study in its database."""

    spec: dict[str, Any]
    space: dict[str, Any]
    trials: Annotated[int, Field(ge=1, lt=2**31)]


def sampler(spec: TuneSpec, seed: int) -> BaseSampler:
    """The sampler that the settings name."""
    with experimental():
        if spec.sampler == "tpe":
            return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
        kinds = {
            "gp": optuna.samplers.GPSampler,
            "qmc": optuna.samplers.QMCSampler,
            "nsgaii": optuna.samplers.NSGAIISampler,
            "random": optuna.samplers.RandomSampler,
        }
        return kinds[spec.sampler](seed=seed)


def pruner(spec: TuneSpec) -> optuna.pruners.BasePruner:
    """The pruner that the settings name; it prunes no trial in the first fifth of the epochs."""
    early = max(1, spec.epochs_per_trial // 5)
    if spec.pruner == "median":
        return optuna.pruners.MedianPruner(n_warmup_steps=early)
    if spec.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=early, max_resource=spec.epochs_per_trial)
    return optuna.pruners.NopPruner()


def _worker_seed(seed: int, worker: str) -> int:
    """Another seed for each worker that joins or resumes a study, so that their proposals differ."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{worker}".encode()).digest()[:4], "big")
