"""Sphinx configuration. Figures, tables and help texts are made by the package itself at each build."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

import rismusic
from rismusic.spec import Spec

DOCS = Path(__file__).parent
_COLON = "\N{RATIO} "
sys.path.insert(0, str(DOCS))

project = "rismusic"
author = "The rismusic authors"
copyright = author
version = release = rismusic.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser", "mathml"]
exclude_patterns = ["_build", "_generated", "measured"]
source_suffix = {".md": "markdown"}

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "exclude-members": "model_config"}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 80
add_module_names = False

smartquotes = False  # the sentences of the package are shown as they are

html_theme = "furo"
html_title = f"rismusic {release}"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["docs.css"]
html_copy_source = False
pygments_style = "friendly"


def make_generated(app: Sphinx) -> None:
    """Everything under ``_generated``: what the pages show of the package, taken from the package."""
    import figures
    import tables

    folder = Path(app.srcdir) / "_generated"
    folder.mkdir(exist_ok=True)
    figures.draw_all(folder)
    tables.write_all(folder)


def before_napoleon(
    _app: Sphinx, what: str, _name: str, _thing: object, _options: object, lines: list[str]
) -> None:
    """``[S, *shape]`` is no emphasis; in ``Number of sources: one value`` the first words are no type."""
    lines[:] = [re.sub(r"(?<=, )\*(?=\w+\])", r"\\*", line) for line in lines]
    lines[:] = [re.sub(r"(?<=: )(?=[A-Z]\.$)", r"\\", line) for line in lines]  # "L." starts no list
    if what in ("attribute", "property") and lines:
        lines[0] = lines[0].replace(": ", _COLON)


def after_napoleon(
    _app: Sphinx, _what: str, _name: str, _thing: object, _options: object, lines: list[str]
) -> None:
    """The colons that were hidden from napoleon come back."""
    lines[:] = [line.replace(_COLON, ": ") for line in lines]


def short_signature(
    _app: Sphinx, _what: str, _name: str, thing: object, *_rest: object
) -> tuple[str, str] | None:
    """Settings are listed below their class with their meaning; the signature would only repeat them."""
    return ("(**settings)", "") if isinstance(thing, type) and issubclass(thing, Spec) else None


def setup(app: Sphinx) -> None:
    """Hook into the build before any page is read."""
    app.connect("builder-inited", make_generated)
    app.connect("autodoc-process-signature", short_signature)
    app.connect("autodoc-process-docstring", before_napoleon, priority=400)
    app.connect("autodoc-process-docstring", after_napoleon, priority=600)
