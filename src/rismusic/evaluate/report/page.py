"""One HTML file that needs nothing else: templates, the limit of its size, and where it came from."""

from __future__ import annotations

import base64
import functools
import io
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rismusic.errors import InputError
from rismusic.files import check_output, replace_file
from rismusic.spec import Spec
from rismusic.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.axes import Axes

LIMIT = 1_000_000
"""Bytes that no report exceeds."""
REPORT_ENDINGS = (".html",)
_DOTS_PER_INCH = 110


@dataclass(frozen=True)
class Plot:
    """A plot as a ``data:`` address, and what it shows."""

    image: str
    caption: str

    @classmethod
    def of(cls, ax: Axes, caption: str) -> Plot:
        """The whole figure that ``ax`` is part of."""
        figure = ax.get_figure(root=True)
        assert figure is not None
        with io.BytesIO() as file:
            figure.savefig(file, format="png", dpi=_DOTS_PER_INCH, pil_kwargs={"optimize": True})
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
    """Refuse a report that cannot be written, before any work is done for it.

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
            "report", "jinja2 and matplotlib (pip install 'rismusic[report]')", f"no {error.name}"
        ) from None
    return Environment(
        loader=PackageLoader("rismusic.evaluate.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def fragment(template: str, **values: Any) -> str:
    """A part of a page as safe HTML text."""
    return environment().get_template(template).render(**values)


def within(parts: Iterable[str], size: int) -> list[str]:
    """The first parts that fit together into so many bytes."""
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
    text = fragment(template, command=command, made=when, versions=versions(), **values)
    size = len(text.encode())
    if size > LIMIT:
        raise InputError(str(path), f"less to report (at most {LIMIT} bytes of HTML)", f"{size} bytes")
    with replace_file(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")


def versions() -> dict[str, str]:
    """What computed the report."""
    return {
        "rismusic": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def setting_rows(settings: Spec | Mapping[str, object], prefix: str = "") -> list[Setting]:
    """Every setting, those of parts as ``part.name``, with what it means where that is known."""
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
