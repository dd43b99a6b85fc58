"""Tables and texts of the documentation, taken from the package at each build; nothing is pasted."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import architecture_tables
import benchmark_tables
import doctor_tables
import file_tables
import large_panel_tables
import learning_test_tables
import model_order_tables
import rismusic
from markdown_table import table
from rismusic.cli import main
from rismusic.errors import InputError
from rismusic.io import read
from rismusic.io.schema import FIELDS
from rismusic.spec import Spec, SystemSpec
from wave_bias import BINS, FREE, fits, rms

BAD_RECORDINGS = Path(__file__).parent.parent / "tests" / "io" / "bad_inputs.py"
BOUND = ("bound", "--scenes", "200", "--sources", "1", "2", "3", "5", "--snr-db", "0", "5", "10", "20")
COMMANDS = (
    "",
    "simulate",
    "check",
    "locate",
    "calibrate",
    "bound",
    "plan",
    "bench",
    "train",
    "tune",
    "doctor",
)
MEASURED = Path(__file__).parent / "measured"
MEANINGS = {
    "elements": "positions in metres, panel frame",
    "snapshots": "received signal y of each scene and snapshot",
    "channel": "H from the panel to the receiver; absent with direct sampling (M = N)",
    "codes": "RIS configurations c; absent with direct sampling",
    "noise_variance": "σ² = E|n|² of the complex noise at one receiver output; optional",
    "noise_covariance": "covariance of the noise at the receiver outputs; optional, white noise without it",
    "pilots": "known symbols, with `symbols` = `known`",
    "times": "time of each scene in seconds; optional",
    "frequencies": "F subcarriers in hertz; optional. With them `snapshots` are [S, F, L, M], `channel` is "
    "[F, M, N] or [S, F, M, N], `truth/symbols` [S, K_max, F L]",
    "pose": "transform from the panel frame to a room frame; optional",
    "truth/azimuth": "radians, NaN where there is no source; optional",
    "truth/elevation": "radians, NaN where there is no source; with `truth/azimuth`",
    "truth/range": "metres, NaN where there is no source; with `truth/azimuth`",
    "truth/power": "mean power p of the symbols of each source; optional",
    "truth/symbols": "transmitted symbols s; optional, needed by the conditional bound",
}
BAD_SETTINGS: tuple[dict[str, object], ...] = (
    {"sources": 0},
    {"sources": (5, 1)},
    {"sources": 2.5},
    {"snr_db": float("nan")},
    {"snr_db": "loud"},
    {"panel": {"rows": 0}},
    {"panel": {"wavelength_m": -0.3}},
    {"panel": {"row": 12}},
    {"channel": {"kind": "rice"}},
    {"channel": {"rician_factor_db": (10, -3)}},
    {"codebook": {"bits": 0}},
    {"codebook": {"snapshots": 0}},
    {"scene": {"range_max_m": 0.1}},
    {"scene": {"elevation_max_deg": 90}},
    {"hardware": {"dead_fraction": 1}},
    {"channel": {"kind": "direct"}, "hardware": {"code_phase_rad": 0.1}},
)
BAD_COMMANDS: tuple[str, ...] = (
    "simulate -o a.h5 --scenes 0",
    "simulate -o a.h5 --scenes 3 --snr-db 20 0",
    "simulate -o a.wav --scenes 3",
    "simulate -o missing/a.h5 --scenes 3",
    "simulate -o a.h5 --scenes 3 --config missing.toml",
    "simulate -o a.h5 --scenes 3 --link-from missing.h5",
    "simulate -o a.h5 --scenes 3 --scene.separation-deg 170 --sources 5",
    "check missing.h5",
    "bound --sources 0",
    "bound --panel.spacing-wavelengths -1",
    "bound --scenes 2 -o table.txt",
    "bench --methods esprit",
    "bench --sweep speed",
    "bench --workers 2 --cluster tcp://host:8786",
)


def code(text: str) -> str:
    """Text in code style, whatever it holds."""
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}"


def settings() -> str:
    """Every setting of a system, part by part, with its default and meaning."""
    parts: list[tuple[str, str, Spec]] = [("the system", "", SystemSpec())]
    whole = SystemSpec()
    for name in SystemSpec.model_fields:
        value = getattr(whole, name)
        if isinstance(value, Spec):
            parts.append((f"`{name}`", f"{name}.", value))
    text = ""
    for title, prefix, part in parts:
        rows = []
        for name, field in type(part).model_fields.items():
            value = getattr(part, name)
            if not isinstance(value, Spec):
                words = " ".join((field.description or "").split()).replace("``", "`")
                rows.append((code(prefix + name), code(str(value)), words))
        text += f"**{title}** ({_first_sentence(part)})\n\n"
        text += table(("setting", "default", "meaning"), rows) + "\n"
    return text


def fields() -> str:
    """The fields of a recording file, from the list that reader and writer use."""
    axes = {"K": "K_max"}
    rows = [
        ("attribute `format`", "text", "`rismusic/1`"),
        ("attribute `wavelength`", "real number", "metres; with `frequencies`, that of the design frequency"),
        ("attribute `wave`", "text", "`spherical` (default), `uniform`, `fresnel` or `paraxial`; optional"),
        (
            "attribute `pattern_exponent`",
            "real number",
            "q of the element pattern cos^q; 0 (default): isotropic",
        ),
        (
            "attribute `symbols`",
            "text",
            "`independent` (default), `constant` or `known` (default with `pilots`)",
        ),
    ]
    for field in FIELDS.values():
        shape = [axes.get(axis, axis) for axis in field.axes]
        words = f"[{', '.join(shape)}]"
        if field.shared:
            words = f"[{', '.join(shape[1:])}] or {words}"
        name = code(field.name) if field.name == field.flat_name else f"`{field.name}` (`{field.flat_name}`)"
        rows.append((name, f"{words} {field.kind}", MEANINGS[field.name]))
    return table(("name (in `.npz` and `.mat`)", "shape and type", "meaning"), rows)


def sentence(call: object, *arguments: object, **settings: object) -> str:
    """What the package says to bad input.

    Raises:
        AssertionError: it says nothing.
    """
    try:
        call(*arguments, **settings)  # type: ignore[operator]
    except InputError as error:
        return str(error)
    raise AssertionError(f"{call} took {arguments} {settings} without a word")


def bad_settings() -> str:
    """Invalid settings with their error messages."""
    rows = []
    for case in BAD_SETTINGS:
        given = ", ".join(f"{name}={value!r}" for name, value in case.items())
        rows.append((code(f"SystemSpec({given})"), sentence(SystemSpec, **case)))
    return table(("call", "sentence"), rows)


def bad_commands() -> str:
    """Impossible commands, and what the command line prints to standard error before it leaves with 2."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for command in BAD_COMMANDS:
            stderr = io.StringIO()
            with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
                status = main(command.split())
            if status != 2:
                raise AssertionError(f"rismusic {command}: exit code {status}, not 2")
            rows.append((code(f"rismusic {command}"), " ".join(stderr.getvalue().split())))
    return table(("command", "standard error"), rows)


def bad_recordings() -> str:
    """Each bad file that the tests make, and the sentence that reading it ends in.

    Raises:
        FileNotFoundError: the tests' list of bad files is not where it should be.
    """
    if not BAD_RECORDINGS.is_file():
        raise FileNotFoundError(
            f"the table of bad recordings is made from {BAD_RECORDINGS}, which is missing"
        )
    rows = []
    for case in _module(BAD_RECORDINGS).CASES:
        with tempfile.TemporaryDirectory() as folder:
            path = case.make(Path(folder))
            message = sentence(read, path).replace(str(path), path.name).replace(folder, "the folder")
        rows.append((case.name, code(message)))
    return table(("what is wrong", "sentence"), rows)


def _module(path: Path) -> ModuleType:
    """A module from a file that belongs to no package; its neighbours can be imported from it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.parent))
    spec.loader.exec_module(module)
    return module


def wave_bias() -> str:
    """Measured azimuth rms of the fitted waves in each range bin."""
    rows = []
    columns = (fits("paraxial"), fits("paraxial", FREE), fits("fresnel"))
    for place, (low, high) in enumerate(BINS):
        within, free, fresnel = (column[place] for column in columns)
        numbers = [rms(found.azimuth_error_deg) for found in (within, free, fresnel)]
        worst = float(within.azimuth_error_deg.abs().max())
        cells = [
            f"{value:.2g}" if value < 1 else f"{value:.1f}" for value in (*numbers[:2], worst, numbers[2])
        ]
        rows.append((f"{low:g} to {high:g} m", *cells))
    head = (
        "range",
        "paraxial, rms",
        "range free, rms",
        "paraxial, worst",
        "Fresnel form, rms",
    )
    return table(head, rows)


def api() -> str:
    """The names of ``import rismusic`` by task, each with its first sentence and a link."""
    source = Path(rismusic.__file__).read_text(encoding="utf-8")
    groups: dict[str, list[str]] = {}
    title = ""
    for line in source[source.index("_HOME = {") : source.index("__all__ = [")].splitlines():
        if comment := re.match(r"        # (.*)", line):
            title = comment[1]
        elif entry := re.match(r'        \("[\w.]+", "([\w ]+)"\),', line):
            groups.setdefault(title, []).extend(entry[1].split())
    grouped = {name for names in groups.values() for name in names}
    groups["settings, errors and your own methods"] = [n for n in rismusic.__all__ if n not in grouped]
    text = ""
    for title, names in groups.items():
        rows = []
        for name in names:
            thing = getattr(rismusic, name)
            if isinstance(thing, str):
                continue
            kind = "class" if isinstance(thing, type) else "func"
            rows.append((f"{{py:{kind}}}`~{thing.__module__}.{name}`", _first_sentence(thing)))
        text += f"**{title[0].upper()}{title[1:]}**\n\n" + table(("name", "meaning"), rows) + "\n"
    return text


def _first_sentence(thing: object) -> str:
    paragraph = (thing.__doc__ or "").strip().split("\n\n")[0]
    plain = re.sub(r":math:`(.*?)`", r"$\1$", re.sub(r":(?:class|func):`~?([\w.]+)`", r"``\1``", paragraph))
    return " ".join(plain.split()).replace("``", "`")


def output(*arguments: str) -> str:
    """Standard output of a command, run as a user would run it."""
    environment = {**os.environ, "COLUMNS": "84", "NO_COLOR": "1", "TERM": "dumb"}
    command = [sys.executable, "-m", "rismusic", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment, encoding="utf-8"
    )
    return f"$ rismusic {' '.join(arguments)}".rstrip() + "\n" + done.stdout


def samples() -> str:
    """Every sample located, with and without the number of sources: hits, false alarms, errors over bound."""
    with (MEASURED / "samples.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    shown = []
    for row in rows:
        over = (row[f"{name}_over_bound"] for name in ("azimuth", "elevation", "inverse_range"))
        number = "known" if row["count"] == "K" else "estimated"
        numbers = f"{row['hits']} of {row['sources']}", row["false_alarm_count"]
        shown.append(
            (f"`{row['sample']}`", f"`{row['method']}`", number, *numbers, *(f"{float(x):.2f}" for x in over))
        )
    head = ("sample", "method", "K", "hits", "false alarms", "azimuth", "elevation", "1/range")
    return table(head, shown)


def signal_models() -> str:
    """Errors over the bound for every signal model at 10 and 20 dB."""
    with (MEASURED / "signal_models.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = ("azimuth", "elevation", "inverse_range")
    shown = []
    for row in rows:
        over = (float(row[f"{kind}_{name}_over_bound"]) for kind in ("median", "rms") for name in names)
        numbers = f"{float(row['snr_db']):g}", f"{float(row['misses']):.4f}"
        shown.append((row["model"], *numbers, *(f"{x:.2f}" if x > 0 else "-" for x in over)))
    head = (
        "model",
        "SNR / dB",
        "misses",
        "azimuth",
        "elevation",
        "1/range",
        "rms az.",
        "rms el.",
        "rms 1/range",
    )
    return table(head, shown)


def write_all(folder: Path) -> None:
    """Write every table and text into ``folder``."""
    for make in (
        settings,
        fields,
        bad_settings,
        bad_commands,
        bad_recordings,
        wave_bias,
        api,
        samples,
        signal_models,
        large_panel_tables.large_panel_times,
        *benchmark_tables.TABLES,
        *architecture_tables.TABLES,
        *model_order_tables.TABLES,
        *learning_test_tables.TABLES,
        *doctor_tables.TABLES,
        *file_tables.TABLES,
    ):
        (folder / f"{make.__name__}.md").write_text(make(), encoding="utf-8")
    for name in COMMANDS:
        text = output(*name.split(), "--help")
        (folder / f"help_{name or 'rismusic'}.txt").write_text(text, encoding="utf-8")
    plot = ("--plot", str(folder / "bound.png"), "--overwrite")
    shown = output(*BOUND, *plot).split("\n", 1)[1]
    (folder / "bound.txt").write_text(f"$ rismusic {' '.join(BOUND)}\n{shown}", encoding="utf-8")
