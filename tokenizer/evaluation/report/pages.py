"""HTML pages that load nothing from elsewhere: one frame, one style, light and dark."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizer.errors import optional_package

if TYPE_CHECKING:
    from jinja2 import Environment


def page_environment() -> Environment:
    """Where templates are looked up; they extend ``base.html.j2``, whose block is ``content``.

    Raises:
        ImportError: If jinja2 is not installed.
    """
    message = 'A report needs jinja2: pip install "latent-tokenizer[report]".'
    jinja2 = optional_package("jinja2", message)
    return jinja2.Environment(
        loader=jinja2.PackageLoader("tokenizer.evaluation.report", "templates"),
        # File names are the user's, and end up in text and attributes.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
