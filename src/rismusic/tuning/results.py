"""What a search leaves in its folder.

=================== ===============================================================================
``best.toml``       the best training, as ``rismusic train`` takes it
``locate.toml``     the settings of inference that belong to it
``trials.csv``      every trial of the first stage: state, reason, cost, epochs, settings
``finals.csv``      every training of the second stage
``verdict.txt``     what came of it, in sentences
``history.png``     costs and validations over the trials
``importance.png``  how much each setting matters
``report.html``     all of it
=================== ===============================================================================
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from rismusic.errors import InputError
from rismusic.files import replace_file
from rismusic.plots import new_axes, save
from rismusic.spec import dump_spec
from rismusic.tuning.failures import Say
from rismusic.tuning.ledger import reason
from rismusic.tuning.outcome import Tuned, epochs_of
from rismusic.tuning.plots import plot_agreement, plot_history, plot_importance, plot_surrogates
from rismusic.tuning.report import write_tune_report
from rismusic.tuning.storage import experimental
from rismusic.tuning.trial import kept
from rismusic.version import __version__

BEST, LOCATE, TRIALS, FINALS = "best.toml", "locate.toml", "trials.csv", "finals.csv"
HISTORY, IMPORTANCE, REPORT, VERDICT = "history.png", "importance.png", "report.html", "verdict.txt"


def write_results(tuned: Tuned, study: optuna.Study, say: Say) -> None:
    """Write everything; without matplotlib or jinja2 it says so and leaves plots and report out."""
    folder = tuned.folder
    folder.mkdir(parents=True, exist_ok=True)
    head = f"# rismusic {__version__}, {tuned.score.cost!r} on the scenes that choose\n"
    _write(folder / BEST, head + dump_spec(tuned.training))
    _write(folder / LOCATE, head + dump_spec(tuned.locate))
    _write(folder / TRIALS, _table(trial_rows(tuned.trials)))
    _write(folder / FINALS, _table(final_rows(tuned)))
    _write(folder / VERDICT, "".join(f"{sentence}\n" for sentence in tuned.sentences()))
    importance = importances(study)
    try:
        _draw(tuned, importance)
        write_tune_report(folder / REPORT, tuned, trial_rows(tuned.trials), importance, overwrite=True)
    except InputError as error:
        say(f"no plots and no report: {error}")


def importances(study: optuna.Study) -> dict[str, float]:
    """How much each setting of the training matters to the cost; empty with fewer than three results.

    Watanabe, Bansal, Hutter, "PED-ANOVA: efficiently quantifying hyperparameter importance in arbitrary
    subspaces" (IJCAI 2023), as optuna has it.
    """
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(done) < 3 or len({trial.value for trial in done}) < 2:
        return {}
    with experimental():
        return optuna.importance.get_param_importances(study)


def _draw(tuned: Tuned, importance: dict[str, float]) -> None:
    axes = new_axes(None, None, None, size=(15.0, 4.0))
    plot_history(tuned.trials, ax=axes[0])
    plot_surrogates(tuned.trials, ax=axes[1])
    plot_agreement(tuned.trials, tuned.correlation["surrogate"], ax=axes[2])
    save(axes[0], tuned.folder / HISTORY, overwrite=True)
    if importance:
        save(plot_importance(importance), tuned.folder / IMPORTANCE, overwrite=True)


def trial_rows(trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    """A row for each trial of the first stage."""
    names = sorted({name for trial in trials for name in trial.params})
    inner = sorted({name for trial in trials for name in trial.user_attrs.get("locate", {})})
    rows = []
    for trial in trials:
        epochs, held = epochs_of(trial), trial.user_attrs
        last = epochs[-1] if epochs else {}
        judged = kept(trial, "judged") if "judged" in held else None
        knobs = held.get("knob_cost")
        rows.append(
            {
                "trial": trial.number,
                "state": trial.state.name.lower(),
                "reason": reason(trial),
                "cost": trial.value if trial.state == TrialState.COMPLETE else None,
                "f1": judged.f1 if judged else None,
                "gospa_m": judged.mean_gospa_m if judged else None,
                "knob_cost_before": knobs[0] if knobs else None,
                "knob_cost": knobs[1] if knobs else None,
                "epochs": len(epochs),
                "surrogate": last.get("surrogate"),
                "loss": last.get("loss"),
                "seconds": held.get("seconds"),
                "worker": held.get("worker"),
                **{name: trial.params.get(name) for name in names},
                **{f"locate.{name}": held.get("locate", {}).get(name) for name in inner},
            }
        )
    return rows


def final_rows(tuned: Tuned) -> list[dict[str, Any]]:
    """A row for each training of the second stage."""
    return [
        {
            "settings": final.name,
            "seed": seed,
            "cost": chosen.cost,
            "f1": chosen.f1,
            "gospa_m": chosen.mean_gospa_m,
            "fresh_cost": fresh.cost,
            "fresh_f1": fresh.f1,
            "fresh_gospa_m": fresh.mean_gospa_m,
        }
        for final in tuned.finals
        for seed, (chosen, fresh) in enumerate(zip(final.objective, final.fresh, strict=True))
    ]


def _table(rows: Sequence[dict[str, Any]]) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _write(path: Path, text: str) -> None:
    with replace_file(path, overwrite=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
