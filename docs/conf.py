"""Sphinx configuration. Figures, tables and help texts are made by the package itself at each build."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

import rismusic

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

project = "rismusic"
author = "The rismusic authors"
copyright = author
version = release = rismusic.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser", "mathml"]
exclude_patterns = ["_build", "_generated"]
source_suffix = {".md": "markdown"}

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 80
add_module_names = False

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


def keep_stars(
    _app: Sphinx, _what: str, _name: str, _thing: object, _options: object, lines: list[str]
) -> None:
    """Shapes such as ``[S, *shape]`` in docstrings are no emphasis."""
    lines[:] = [re.sub(r"(?<=, )\*(?=\w+\])", r"\\*", line) for line in lines]


def setup(app: Sphinx) -> None:
    """Hook into the build before any page is read."""
    app.connect("builder-inited", make_generated)
    app.connect("autodoc-process-docstring", keep_stars)
