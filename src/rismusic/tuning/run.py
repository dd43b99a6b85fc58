"""A search of settings from Python: begun, joined by other workers, resumed."""

from __future__ import annotations

import hashlib
import json
import time
from functools import partial
from pathlib import Path

import optuna
import torch
from optuna.exceptions import DuplicatedStudyError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage

from rismusic.errors import InputError
from rismusic.tuning.failures import Say
from rismusic.tuning.finals import candidates, enqueue, long_trial
from rismusic.tuning.ledger import reason
from rismusic.tuning.loop import Loop, Progress
from rismusic.tuning.outcome import Tuned, outcome
from rismusic.tuning.results import write_results
from rismusic.tuning.space import Space, load_space
from rismusic.tuning.spec import TRIALS, TuneSpec
from rismusic.tuning.storage import JOURNAL, closing, experimental, open_storage, quiet
from rismusic.tuning.trial import Work, short_trial

_SPEC, _SPACE, _TRIALS = "spec", "space", "trials"
# Seconds that a study may take to be given its settings by the worker that made it.
_SETTLED_S = 10.0


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
) -> Tuned:
    """Search settings of training and inference; the twin of ``rismusic tune``.

    Args:
        spec: the settings of the search; the default ones if none.
        out: folder for runs and results.
        storage: the URL of a database that other workers use too, or a journal file; ``study.journal`` in
            ``out`` if none.
        study: its name there.
        resume: go on with a study that was begun, with its own settings.
        trials: of the first stage; 50 of a new study, as many as before of one that is resumed, if none.
        device: ``cpu`` or ``cuda``; a GPU where there is one, if none.
        heartbeat_s: seconds between two signs of life of a worker in a database; after twice as many without
            one, its trial is put back.
        poll_s: seconds between two looks at what other workers do.
        command: what was typed, for the report.
        progress: called with the number of trials done and that of all.
        say: called with each line for the console.
        settings: fields of :class:`~rismusic.tuning.spec.TuneSpec` to change, such as ``space="wide"``.

    Raises:
        InputError: an unknown or impossible setting, a space with an unknown name, a study that exists or is
            another one, a database that cannot be reached, too many failures in a row.
        KeyboardInterrupt: on Ctrl-C; the running trial is put back.
    """
    if resume and (spec is not None or settings):
        raise InputError("resume", "no settings beside it but trials (they are in the study)", "some")
    if Path(study).name != study:
        raise InputError("study", "a name that a folder can have", repr(study))
    if trials is not None and trials < 1:
        raise InputError("trials", "at least 1", str(trials))
    chosen = (spec or TuneSpec()).replace(**settings)
    folder = Path(out)
    if storage is None and not resume and (folder / JOURNAL).exists():
        raise InputError(str(folder), "a new folder (or resume, --resume, to go on)", "a study in it")
    kept, workers = open_storage(storage, folder, heartbeat_s=heartbeat_s)
    with quiet(), closing(kept), workers.at_work():
        if resume:
            short, chosen, space = _resumed(kept, study)
            first = False
        else:
            space = load_space(chosen.space)
            space.check(chosen.short_training(), chosen.locate)
            short, first = _begun(kept, study, chosen, space, trials or TRIALS)
        if resume and trials is not None:
            short.set_user_attr(_TRIALS, trials)
        count: int = short.user_attrs[_TRIALS]
        name = device or ("cuda" if torch.cuda.is_available() else "cpu")
        work = Work(chosen, space, count, folder / study, workers.name, name, say)
        loop = Loop(kept, workers, chosen.failures, poll_s, progress, say)
        short.sampler = sampler(chosen, chosen.seed if first else _own_seed(chosen.seed, workers.name))
        short.pruner = pruner(chosen)
        loop.run(short, partial(short_trial, work), count)
        found = candidates(chosen, short.get_trials(deepcopy=False))
        if len(found) == 1:
            said = [reason(trial) for trial in short.get_trials(deepcopy=False) if reason(trial)]
            raise InputError("trials", "one at least that ends with a cost", (said or ["none"])[-1])
        # More trials, other finalists: a second stage of their own.
        stage = f"{study}-long-{count}"
        long = optuna.create_study(
            storage=kept,
            study_name=stage,
            load_if_exists=True,
            pruner=optuna.pruners.NopPruner(),
        )
        wanted = enqueue(long, chosen, found)
        last = Work(chosen, space, count, folder / stage, workers.name, name, say)
        loop.run(long, partial(long_trial, last, found), wanted)
        result = outcome(
            chosen,
            space,
            short.get_trials(),
            long.get_trials(),
            folder=folder,
            runs=last.folder,
            command=command,
        )
    write_results(result, short, say)
    return result


def _begun(
    storage: BaseStorage, name: str, spec: TuneSpec, space: Space, trials: int
) -> tuple[optuna.Study, bool]:
    """A new study, or one that another worker has begun with the same settings; whether it is new.

    Raises:
        InputError: one of that name has other settings.
    """
    try:
        study = optuna.create_study(storage=storage, study_name=name)
        new = True
    except DuplicatedStudyError:
        study = optuna.load_study(study_name=name, storage=storage)
        new = False
        until = time.monotonic() + _SETTLED_S
        while _SPEC not in study.user_attrs and time.monotonic() < until:
            time.sleep(0.1)
    held = study.user_attrs
    if _SPEC not in held:
        study.set_user_attr(_TRIALS, trials)
        study.set_user_attr(_SPACE, space.model_dump_json())
        study.set_user_attr(_SPEC, spec.model_dump_json())
    elif (TuneSpec(**json.loads(held[_SPEC])), Space(**json.loads(held[_SPACE])), held[_TRIALS]) != (
        spec,
        space,
        trials,
    ):
        raise InputError("study", "the settings that it was begun with", f"others than those of {name!r}")
    return study, new


def _resumed(storage: BaseStorage, name: str) -> tuple[optuna.Study, TuneSpec, Space]:
    """A study that was begun, with its own settings and space.

    Raises:
        InputError: there is none of that name.
    """
    known = optuna.get_all_study_names(storage)
    if name not in known:
        raise InputError("study", "one that was begun", f"{name!r} among {', '.join(known) or 'none'}")
    study = optuna.load_study(study_name=name, storage=storage)
    held = study.user_attrs
    if _SPEC not in held:
        raise InputError("study", "one that rismusic tune has begun", f"{name!r} without settings")
    spec = TuneSpec(**json.loads(held[_SPEC]))
    return study, spec, Space(**json.loads(held[_SPACE]))


def sampler(spec: TuneSpec, seed: int) -> BaseSampler:
    """Who proposes settings."""
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
    """Who stops trials; no one is stopped while beta rises at first."""
    if spec.pruner == "median":
        early = max(1, spec.epochs_per_trial // 5)
        return optuna.pruners.MedianPruner(n_startup_trials=spec.startup_trials, n_warmup_steps=early)
    if spec.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(
            min_resource=max(1, spec.epochs_per_trial // 5), max_resource=spec.epochs_per_trial
        )
    return optuna.pruners.NopPruner()


def _own_seed(seed: int, worker: str) -> int:
    """Workers that join draw something else than the first one."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{worker}".encode()).digest()[:4], "big")
