"""The exception for bad input, and the table of renamed and removed names for the errors about old ones.

Old names are not aliases. The command line, TOML files, the specs and the Python API all ask the table. The
module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar


class InputError(ValueError):
    """Bad input, explained in one sentence: ``field: what is wrong and what to do``.

    The command line prints the sentence and exits with code 2; a traceback there is a bug.

    Args:
        field: name of the offending field, argument or file.
        problem: what is wrong with it and, where that is not obvious, what to do.
    """

    def __init__(self, field: str, problem: str) -> None:
        self.field = field
        self.problem = problem
        super().__init__(f"{field}: {problem}")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str]]:
        """Pickle the two parts, so that the exception can cross process boundaries."""
        return type(self), (self.field, self.problem)


def not_installed(field: str, extra: str, subject: str = "") -> InputError:
    """The error of an optional package, which is the field or else the subject of the sentence."""
    return InputError(field, f"{subject}is not installed; run: pip install 'rismusic[{extra}]'")


def check_choice(field: str, value: object, options: Sequence[str]) -> None:
    """Check that a value is one of the options; type hints alone do not stop a misspelled one."""
    if value not in options:
        raise InputError(field, f"must be one of {', '.join(options)}; got {value!r}")


@contextmanager
def in_file(path: Path | str) -> Iterator[None]:
    """Add the file's name to error messages about its fields."""
    try:
        yield
    except InputError as error:
        if error.field == str(path):
            raise
        raise InputError(error.field, f"{error.problem} (in {path})") from error


SINCE = "0.2.0"
C = TypeVar("C", bound=type)

# New name of each old one; None: removed. Settings as in a TOML file, ``table.key``.
RENAMED_SETTINGS: dict[str, str | None] = {
    "hybrid.belief": "hybrid.spatial_prior",
    "hybrid.own_list": "hybrid.network_sources",
    "hybrid.doubt": "hybrid.recheck_p_value",
    "hybrid.search_from": "hybrid.birth_death_min_sources",
    "hybrid.search_below": "hybrid.birth_death_prior_below",
    "hybrid.count": "hybrid.model_order",
    "hybrid.count_floor": "hybrid.model_order_floor",
    "hybrid.exchanges": "hybrid.relax_sweeps",
    "hybrid.steps": "hybrid.max_evaluations",
    "hybrid.newton_step": None,
    "hybrid.peak_threshold": None,
    "hybrid.polish_up_to_db": None,
    "network.climbs": "network.sbl_iterations",
    "loss.peak_spectrum": None,
    "loss.count_smoothing": None,
    "loss.eigengap_margin": None,
    "loss.angle_scale_deg": None,
    "loss.log_range_scale": None,
    "loss.heat_map_width": None,
    "schedule.last_phase": None,
    "knob_scenes": "inference_scenes",
    "fresh_scenes": "test_scenes",
    "failures": "max_failures",
    "shard": None,
    "merge": None,
    "startup_trials": None,
    "early_stop_patience": "training.patience",
}
# Attributes of the package.
RENAMED_NAMES: dict[str, str | None] = {
    "Located": "Estimate",
    "Trained": "TrainingResult",
    "Tuned": "TuneResult",
    "merge_benchmarks": None,
}
# Attributes of public classes.
RENAMED_ATTRIBUTES: dict[str, dict[str, str | None]] = {
    "Estimate": {"likelihood": "neg_log_likelihood", "count_probability": "n_sources_probability"},
    "Panel": {"uniform": "uniform_planar"},
    "Volume": {"from_scene": "from_spec"},
}
# Arguments of functions.
RENAMED_ARGUMENTS: dict[str, dict[str, str | None]] = {"locate": {"sources": "n_sources"}}
# Subcommands, with what to run instead.
REMOVED_COMMANDS: dict[str, str] = {"doctor faults": "python benchmarks/doctor_faults.py"}


def _sentence(new: str | None, prefix: str = "") -> str:
    return f"was removed in {SINCE}" if new is None else f"was renamed to {prefix}{new} in {SINCE}"


def renamed_setting(name: str) -> str | None:
    """What became of a setting, as the end of a sentence; none if it has not changed.

    Tables around the last two parts of a dotted name do not matter, so that ``locate.hybrid.belief`` is known
    as well.
    """
    *parents, table, key = ("", *name.split("."))
    old = f"{table}.{key}".lstrip(".")
    if old not in RENAMED_SETTINGS:
        return None
    return _sentence(RENAMED_SETTINGS[old], "".join(f"{parent}." for parent in parents if parent))


def renamed_option(option: str) -> str | None:
    """The same for an option of the command line, such as ``--hybrid.own-list``."""
    name = option.removeprefix("--").replace("-", "_").replace(".no_", ".")
    sentence = renamed_setting(name)
    if sentence is None or "renamed" not in sentence:
        return sentence
    start, new, end = sentence.partition(sentence.split()[3])
    return f"{start}--{new.replace('_', '-')}{end}"


def renamed_command(words: str) -> str | None:
    """The same for a command."""
    return f"was removed in {SINCE}; run {REMOVED_COMMANDS[words]}" if words in REMOVED_COMMANDS else None


def renamed_name(name: str) -> str | None:
    """The same for an attribute of the package."""
    return _sentence(RENAMED_NAMES[name], "rismusic.") if name in RENAMED_NAMES else None


def renamed_argument(function: str, name: str) -> str | None:
    """The same for an argument of a function."""
    old = RENAMED_ARGUMENTS[function]
    return _sentence(old[name]) if name in old else None


class _Renamed:
    """An attribute whose use is an error that gives the new name."""

    def __init__(self, old: str, new: str | None) -> None:
        self.old, self.new = old, new

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        name = type(instance).__name__ if owner is None else owner.__name__
        raise AttributeError(f"{name}.{self.old} {_sentence(self.new, f'{name}.')}")


def refuse_old_names(cls: C) -> C:
    """Class decorator: the use of an old attribute is an error with the new name."""
    for old, new in RENAMED_ATTRIBUTES[cls.__name__].items():
        setattr(cls, old, _Renamed(old, new))
    return cls
