"""How Sphinx makes a site of the manual: `make site`, then open build/site/docs/index.html.

The pages are plain Markdown that reads as well on a forge, so what only a site has is added here:
the table of contents, and the Python API from its docstrings.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

project = "pgaudit_wf"
author = _PROJECT["authors"][0]["name"]
project_copyright = author
release = version = _PROJECT["version"]
root_doc = "docs/index"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
include_patterns = ["docs/**", "benchmarks/*", "contrib/deploy/README.md", "*.md"]
exclude_patterns = ["docs/site/conf.py"]
html_theme = "furo"
html_title = f"pgaudit_wf {release}"
html_copy_source = False
# A heading is linked to by what a forge makes of it.
myst_heading_anchors = 4
suppress_warnings = [
    # Links to sources: a page cannot show them.
    "myst.xref_missing",
    # JSON with an ellipsis, and psql's output, are shown as they are.
    "misc.highlighting_failure",
]
autodoc_member_order = "groupwise"
autodoc_typehints = "description"
autodoc_class_signature = "separated"

_FOLDERS = {
    "Tutorial": ["tutorial"],
    "How to": sorted(f"how-to/{page.stem}" for page in (ROOT / "docs" / "how-to").glob("*.md")),
    "Reference": sorted(
        f"reference/{page.stem}"
        for pattern in ("*.md", "*.rst")
        for page in (ROOT / "docs" / "reference").glob(pattern)
    ),
    "Explanation": sorted(
        f"explanation/{page.stem}" for page in (ROOT / "docs" / "explanation").glob("*.md")
    ),
    "Project": [
        "../README",
        "../CHANGELOG",
        "../SECURITY",
        "../CONTRIBUTING",
        "../CODE_OF_CONDUCT",
        "../benchmarks/README",
    ],
}


def _add_contents(app: Sphinx, page: str, source: list[str]) -> None:
    if page == root_doc:
        source[0] += "".join(
            f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{listed}\n```\n"
            for caption, listed in ((name, "\n".join(pages)) for name, pages in _FOLDERS.items())
        )


def setup(app: Sphinx) -> None:
    """Register with Sphinx."""
    app.connect("source-read", _add_contents)
