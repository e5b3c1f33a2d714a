"""HTML pages that load nothing from elsewhere: one frame, one style, light and dark."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizer.errors import import_extra

if TYPE_CHECKING:
    from jinja2 import Environment


def page_environment() -> Environment:
    """Where templates are looked up; they extend ``base.html.j2``, whose block is ``content``.

    Raises:
        ImportError: If jinja2 is not installed.
    """
    jinja2 = import_extra("jinja2", "A report", "report")
    return jinja2.Environment(
        loader=jinja2.PackageLoader("tokenizer.evaluation.report", "templates"),
        # File names are the user's, and end up in text and attributes.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
