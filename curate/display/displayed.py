"""Show the library's results in a notebook without importing what draws them."""

from __future__ import annotations

import importlib


class Displayed:
    """A result that a notebook shows as HTML.

    The drawing module is looked up by name when a notebook asks, so that results do not depend on how they look.
    """

    def _repr_html_(self) -> str:
        notebook = importlib.import_module("curate.report.notebook")
        html: str = notebook.to_html(self)
        return html
