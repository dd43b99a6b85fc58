"""What all commands have in common: their options, what they print, and the progress bar.

A command is a spec whose fields are its options. Data goes to standard output, everything else to standard
error.
"""

from __future__ import annotations

import dataclasses
import io
import os
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, TextIO, TypeVar

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from rismusic.errors import InputError, not_installed
from rismusic.files import PLOT_ENDINGS, TABLE_ENDINGS, check_output, failure, write_text
from rismusic.partial import PartialFile
from rismusic.spec import ChannelSpec, Spec
from rismusic.text import command_line, csv_text, finite, json_text, plain, printable, redact
from rismusic.version import __version__

P = TypeVar("P", bound=PartialFile)


@dataclass(frozen=True)
class Option:
    """How a field is written on the command line, where that differs from its name.

    ``metavar`` is the placeholder of the value in the help, ``short`` a second option such as ``-o``. A
    hidden field is no option, but follows from others.
    """

    metavar: str = ""
    short: str = ""
    name: str = ""
    hidden: bool = False


# Fields that name output files: their options, endings of the files, and the packages that are needed.
_OUTPUTS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "output": ("--output", (), ()),
    "plot": ("--plot", PLOT_ENDINGS, ("matplotlib",)),
    "report": ("--report", (".html",), ("jinja2", "matplotlib")),
    "json_file": ("--json", (".json",), ()),
}
_OF_RIS = ("codebook.kind", "codebook.bits")


class Command(Spec):
    """A command of the command line. Its fields are its options; those of ``FLAT`` are groups of options."""

    FLAT: ClassVar[str] = ""
    """Field whose settings are options without a prefix."""
    POSITIONAL: ClassVar[str] = ""
    """Field that may be given without the name of its option."""
    FURTHER: ClassVar[str] = ""
    """Field, no option itself, that takes the further values without the name of an option."""
    CONFIG_TABLES: ClassVar[Mapping[str, str]] = {"config": ""}
    """Options that take a TOML file, and the table that the file fills; "": the settings of the command."""
    IGNORED: ClassVar[tuple[str, ...]] = ()
    """Settings of a system that the command does not use. They are accepted in a TOML file."""
    OUTPUT_ENDINGS: ClassVar[tuple[str, ...]] = TABLE_ENDINGS
    """Endings of the names that --output takes; none: any."""
    SWEPT: ClassVar[tuple[str, ...]] = ()
    """Tables whose settings may have several values, which make a sweep."""
    RESUMES_OUTPUT: ClassVar[bool] = False
    """Whether --resume continues --output, which then may exist already."""
    NEEDS: ClassVar[Mapping[str, str]] = {}
    """Fields that have an effect only with another one."""

    @classmethod
    def positional_field(cls, value: str) -> str:
        """Field that a value without an option stands for."""
        del value
        return cls.POSITIONAL

    @classmethod
    def base(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Settings below those ``given`` by files and options, such as a preset."""
        del given
        return {}

    @classmethod
    def with_sweep(cls, values: Mapping[str, Any], sweep: Mapping[str, tuple[Any, ...]]) -> Mapping[str, Any]:
        """Settings with a sweep: ``values`` has the first value of each swept setting, ``sweep`` all."""
        raise NotImplementedError

    @classmethod
    def check_options(cls, typed: Mapping[str, Any]) -> None:
        """Refuse options, given with their values by dotted name, that contradict each other."""

    def without_effect(self, typed: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Typed options, by dotted name, that change nothing beside the other settings, with the reason."""
        for name in typed:
            needed = self.NEEDS.get(name)
            if needed is not None and not getattr(self, needed):
                yield name, f"it needs --{needed.replace('_', '-')}"

    def writes(self) -> list[tuple[str, Path]]:
        """Files that the command writes or replaces, each with its option; also those beside the outputs."""
        given = [(option, getattr(self, name, None)) for name, (option, _, _) in _OUTPUTS.items()]
        return [(option, path) for option, path in given if isinstance(path, Path)]

    def reads(self) -> list[Path]:
        """Files and folders that the command reads: every path, and every text that is the name of a file."""
        values = [*_values(self.model_dump(exclude={*_OUTPUTS, "out"}))]
        return [path for path in values if isinstance(path, Path)] + [
            Path(text) for text in values if isinstance(text, str) and _is_file(text)
        ]

    def check_files(self) -> None:
        """Refuse outputs that are inputs, too: a measurement must not be replaced by what follows from it."""
        inputs, written = self.reads(), dict[Path, str]()
        for option, path in self.writes():
            whole = _real(path)
            if whole in written:
                raise InputError(option, f"{path} is written anyway ({written[whole]}); name another file")
            written[whole] = option
            for one in inputs if path.is_file() else ():
                inside = one.is_dir() and _real(one) in whole.parents
                if inside or (one.exists() and path.samefile(one)):
                    output = getattr(self, "output", None)
                    beside = "" if output in (None, path) else f", which is written beside {output},"
                    raise InputError(
                        option, f"{path}{beside} is an input of this command; write to another file"
                    )

    def check_outputs(self) -> None:
        """Check, before work starts, that outputs can be written and that packages for them are installed."""
        for name, (_, endings, packages) in _OUTPUTS.items():
            path = getattr(self, name, None)
            if isinstance(path, Path):
                own = self.OUTPUT_ENDINGS if name == "output" else endings
                may_exist = getattr(self, "overwrite") or (  # noqa: B009
                    name == "output" and self.RESUMES_OUTPUT and getattr(self, "resume")  # noqa: B009
                )
                check_output(path, overwrite=may_exist, endings=own)
                check_extras("report", *packages)

    def run(self) -> int:
        """Run the command and return the exit code."""
        raise NotImplementedError


def without_channel(channel: ChannelSpec, typed: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Options of the channel and of the configurations, which direct sampling does not have."""
    for name in typed if channel.kind == "direct" else ():
        if name != "channel.kind" and (name.startswith("channel.") or name in _OF_RIS):
            yield name, "--channel.kind direct has neither channel nor RIS"


def _values(value: object) -> Iterator[object]:
    """All values of nested settings."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        for one in value:
            yield from _values(one)
    else:
        yield value


def _real(path: Path) -> Path:
    """The path without links; as it is if there is no such path."""
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError):  # with a null character
        return path


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long, or with a null character
        return False


EVERYDAY: dict[str, tuple[str, ...]] = {
    "simulate": (
        *("output", "scenes", "sources", "snr_db", "seed", "one_link", "link_from", "device", "config"),
        *("overwrite", "panel.rows", "panel.columns", "panel.wavelength_m", "channel.kind"),
        *("channel.antennas", "codebook.kind", "codebook.snapshots", "codebook.bits"),
    ),
    "check": ("file", "as_json", "fit", "plot", "scene", "overwrite"),
    "locate": (
        *("file", "sources", "method", "weights", "panel_error", "range_min_m", "range_max_m"),
        *("azimuth_max_deg", "elevation_max_deg", "calibration", "fuse", "output", "plot", "scene", "report"),
        *("device", "plugins", "config", "overwrite"),
    ),
    "calibrate": (
        *("file", "output", "known_positions", "sources", "method", "panel_error"),
        *("position_error_wavelengths", "plot", "config", "overwrite"),
    ),
    "bound": (
        *("sources", "snr_db", "power_dbm", "scenes", "seed", "kind", "output", "plot", "config"),
        "overwrite",
        *("panel.rows", "panel.columns", "channel.antennas", "codebook.snapshots", "codebook.bits"),
        *("scene.range_min_m", "scene.range_max_m", "budget.bandwidth_hz"),
    ),
    "plan": (
        *("target_m", "range_m", "rows", "antennas", "snapshots", "bits", "sources", "power_dbm", "snr_db"),
        *("scenes", "kind", "output", "config", "overwrite", "panel.wavelength_m", "channel.distance_m"),
        "budget.bandwidth_hz",
    ),
    "bench": (
        *("methods", "sources", "snr_db", "scenes", "seed", "count", "sweep", "sweep_values", "out"),
        *("resume", "workers", "cluster", "device", "output", "report", "config", "overwrite"),
        "locate.plugins",
    ),
    "train": (
        *("config", "preset", "epochs", "out", "resume", "start", "device", "seed"),
        *("scenes_per_epoch", "network.plugins"),
        *("network.sources_max", "system.sources", "system.snr_db", "system.panel.rows"),
        *("system.panel.columns", "system.channel.antennas", "system.codebook.snapshots"),
    ),
    "doctor": ("config", "preset", "folder", "json_file", "report", "overwrite"),
    "tune": (
        *("config", "training_config", "space", "trials", "epochs_per_trial", "sampler", "pruner"),
        *("finalists", "final_seeds", "final_epochs", "seed", "out", "storage", "study", "resume", "device"),
    ),
}


def prepare_streams() -> None:
    """Connect closed standard streams to the null device, and print "?" for characters that one lacks.

    Python has None in place of a stream that was closed when it started, and of all three under pythonw. The
    descriptors are filled, too: the next file that is opened would get the number of the closed stream, and
    with it what C libraries and worker processes print.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number, this one
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115  (open to the end)
    for stream in (sys.stdout, sys.stderr):
        # Python's own handler of the POSIX locale lets no other character through either.
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")


def drop(stream: TextIO) -> None:
    """Discard what a stream has not written, and all that follows, so that Python does not try at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


# In narrower terminals rich cuts numbers of tables, and fails.
_LEAST_COLUMNS = 60


class SafeConsole(Console):
    """Console for text of any origin: no markup in it is interpreted, and control characters are escaped."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)
        self.width = max(self.width, _LEAST_COLUMNS)

    def render_str(self, text: str, **options: Any) -> Text:
        """The text as it is, line breaks included."""
        return super().render_str(printable(text), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print. What standard error does not take is lost: there is nowhere left to complain."""
        try:
            super().print(*objects, **options)
        except OSError:
            if not self.stderr:
                raise
            drop(sys.stderr)

    def on_broken_pipe(self) -> None:
        """Raise the error again, which rich would replace by exit code 1."""
        raise


def complain(sentence: str) -> None:
    """Print an error on standard error, in one line."""
    line = Text.assemble(("error:", "bold red"), " ", plain(sentence))
    SafeConsole(stderr=True).print(line, soft_wrap=True)


def save_traceback(error: BaseException) -> str:
    """Write the traceback of an error into a new temporary file; say where it is."""
    lines = [f"rismusic {__version__}: {command_line()}\n\n", *traceback.format_exception(error)]
    text = printable(redact("".join(lines)))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="rismusic-error-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(text)
    except OSError as unsaved:
        return f"The traceback could not be saved ({failure(unsaved)})"
    return f"The traceback is in {file.name}"


def check_extras(extra: str, *packages: str) -> None:
    """Check that optional packages are installed, before work starts."""
    for package in packages:
        if find_spec(package) is None:
            raise not_installed(package, extra)


def note(sentence: str) -> None:
    """Print something that is not data, on standard error, in one line."""
    if hasattr(sys.stderr, "rich_proxied_file"):  # a progress bar, which would overwrite the line
        sys.stderr.write(f"{plain(sentence)}\n")
    else:
        SafeConsole(stderr=True).print(plain(sentence), soft_wrap=True)


def say(line: str) -> None:
    """Print one line of data on standard output, at once."""
    print(plain(line), flush=True)


@contextmanager
def resumable(output: P, scenes: int, *, without: str = "") -> Iterator[P]:
    """The output under construction. If it is cut, the user is told how to continue it.

    ``without`` names the options of the command with which it cannot be continued.
    """
    with output:
        try:
            yield output
        except BaseException:
            if output.scenes:
                note(
                    f"{output.scenes} of {scenes} scenes are in {output.part}; run the command again with "
                    f"--resume{without} to continue"
                )
            raise


def number_table(heads: Iterable[str], **settings: Any) -> Table:
    """A table whose columns are numbers, aligned to the right."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, **settings)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f}/s", style="cyan")


def progress_bar() -> Progress:
    """A progress bar with count, rate and time left; silent where standard error is no terminal."""
    console = SafeConsole(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


def json_record(row: Any) -> dict[str, Any]:
    """The fields of a dataclass; those that are not finite become null, since JSON has no infinity."""
    return dataclasses.asdict(row, dict_factory=lambda items: {name: finite(value) for name, value in items})


def write_rows(
    path: Path, rows: Sequence[Any], *, row_type: type[Any], overwrite: bool, **head: object
) -> None:
    """Write dataclass rows as CSV or, with ``head``, as JSON, by the ending of the name, and say so.

    Infinities are null in JSON, which has no infinity.
    """
    check_output(path, overwrite=overwrite, endings=TABLE_ENDINGS)
    if path.suffix == ".json":
        records = [json_record(row) for row in rows]
        text = json_text({"version": __version__, **head, "rows": records})
    else:
        records = [dataclasses.asdict(row) for row in rows]
        text = csv_text([field.name for field in dataclasses.fields(row_type)], records)
    write_text(path, text, overwrite=overwrite)
    note(f"table written to {path}")
