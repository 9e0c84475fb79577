"""Display results in a notebook without importing the code that renders them."""

from __future__ import annotations

import importlib


class Displayed:
    """A result that a notebook shows as HTML.

    The rendering module is imported by name on demand, so that results do not depend on it.
    """

    def _repr_html_(self) -> str:
        notebook = importlib.import_module("curate.report.notebook")
        html: str = notebook.to_html(self)
        return html
