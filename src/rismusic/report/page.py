"""Self-contained HTML pages: templates, embedded images, size limit, versions, and number formatting."""

from __future__ import annotations

import base64
import functools
import io
import math
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rismusic.errors import InputError
from rismusic.files import check_output, write_text
from rismusic.plots import figure_of
from rismusic.spec import Spec
from rismusic.text import printable, redact
from rismusic.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


LIMIT = 1_000_000
"""Largest size of a report, bytes."""
REPORT_ENDINGS = (".html",)
_DOTS_PER_INCH = 110


@dataclass(frozen=True)
class Plot:
    """A plot as a ``data:`` address, with its caption."""

    image: str
    caption: str

    @classmethod
    def of(cls, plot: Axes | Figure, caption: str) -> Plot:
        """A figure, or the whole figure that axes are part of."""
        with io.BytesIO() as file:
            figure_of(plot).savefig(file, format="png", dpi=_DOTS_PER_INCH, pil_kwargs={"optimize": True})
            return cls(png_address(file.getvalue()), caption)


def png_address(png: bytes) -> str:
    """A PNG as a ``data:`` address, so that a page needs no other file."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


@dataclass(frozen=True)
class Setting:
    """One setting as a row of a table."""

    name: str
    value: str
    meaning: str


def check_report(path: Path, *, overwrite: bool) -> None:
    """Check that a report can be written, before work is done for it.

    Raises:
        InputError: the name does not end in .html, the file exists and ``overwrite`` is off, or the packages
            that reports need are not installed.
    """
    check_output(path, overwrite=overwrite, endings=REPORT_ENDINGS)
    environment()


@functools.cache
def environment() -> Environment:
    """The templates, every value in them escaped.

    Raises:
        InputError: jinja2 or matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise InputError(
            "report", f"reports need {error.name}, which is not installed: pip install 'rismusic[report]'"
        ) from None
    return Environment(
        loader=PackageLoader("rismusic.report"),
        autoescape=True,
        undefined=StrictUndefined,
        # Markup of other templates is text already; the escaping of values follows.
        finalize=lambda value: printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def fragment(template: str, **values: Any) -> str:
    """A part of a page as safe HTML text."""
    return environment().get_template(template).render(**values)


def within(parts: Iterable[str], size: int) -> list[str]:
    """The longest list of first parts that fits into this number of bytes."""
    taken, used = [], 0
    for part in parts:
        used += len(part.encode())
        if used > size:
            break
        taken.append(part)
    return taken


def write_page(
    path: Path, template: str, *, overwrite: bool, command: str, made: datetime | None, **values: Any
) -> None:
    """Render a whole page and write it.

    Raises:
        InputError: see :func:`check_report`; or the page has grown beyond ``LIMIT``.
    """
    check_report(path, overwrite=overwrite)
    made = made or datetime.now().astimezone()
    when = made.strftime("%Y-%m-%d %H:%M %Z").strip()
    text = fragment(template, command=redact(command), made=when, versions=versions(), **values)
    size = len(text.encode())
    if size > LIMIT:
        raise InputError(
            str(path), f"the report has {size} bytes; the limit is {LIMIT}. Show fewer scenes in full"
        )
    write_text(path, text, overwrite=overwrite)


def versions() -> dict[str, str]:
    """Versions of the software that made the report."""
    return {
        "rismusic": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def setting_rows(settings: Spec | Mapping[str, object], prefix: str = "") -> list[Setting]:
    """All settings, nested ones as ``part.name``, with their descriptions where known."""
    if not isinstance(settings, Spec):
        rows = []
        for name, value in settings.items():
            if isinstance(value, (Spec, Mapping)):
                rows += setting_rows(value, f"{prefix}{name}.")
            else:
                rows.append(Setting(prefix + name, _shown(value), ""))
        return rows
    rows = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, Spec):
            rows += setting_rows(value, f"{prefix}{name}.")
        else:
            rows.append(Setting(prefix + name, _shown(value), " ".join((field.description or "").split())))
    return rows


def _shown(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return ", ".join(map(_shown, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


MINUS = "\N{MINUS SIGN}"


def decimals(bar: float) -> int:
    """Number of decimals (0 to 4) that shows two digits of an error bar."""
    if not (math.isfinite(bar) and bar > 0):
        return 2
    return min(4, max(0, 1 - math.floor(math.log10(bar))))


def fixed(value: float, places: int) -> str:
    """A number with this many decimals and a typographic minus; a dash for NaN."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    text = f"{value:.{places}f}"
    return text.replace("-", MINUS) if float(text) else text.removeprefix("-")


def general(value: float, digits: int = 3) -> str:
    """A number with this many significant digits and a typographic minus; a dash for NaN."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    if 1e-3 <= abs(value) < 10**digits:
        places = digits - 1 - math.floor(math.log10(abs(value)))
        return fixed(value, max(0, places))
    return f"{value:.{digits}g}".replace("-", MINUS)
