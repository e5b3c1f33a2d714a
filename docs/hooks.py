"""What mkdocs cannot do by itself: links that lead out of ``docs/``, as GitHub follows them.

``[...](../examples/x.py)`` becomes a link to a copy of that file within the site. A link to a file
that is not there stays as it is, and ``mkdocs build --strict`` complains of it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)#\s]+)")


def _outside(link: str, page: str, docs: Path) -> str | None:
    """The path in the repository of a file that a page links to, if it is not in ``docs/``."""
    path = Path(os.path.normpath(docs / PurePosixPath(page).parent / link))
    inside = path.is_relative_to(docs) or not path.is_relative_to(docs.parent)
    return None if inside or not path.is_file() else path.relative_to(docs.parent).as_posix()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a copy of every file outside of ``docs/`` that some page links to."""
    docs = Path(config.docs_dir)
    for page in files.documentation_pages():
        for link in _LINK.findall(page.content_string):
            target = _outside(link, page.src_uri, docs)
            # As text, which browsers show instead of saving it.
            name = f"source/{target}.txt"
            if target is not None and name not in files.src_uris:
                content = (docs.parent / target).read_text(encoding="utf-8")
                files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Turns the links themselves."""
    docs = Path(config.docs_dir)
    up = "../" * (len(PurePosixPath(page.file.src_uri).parts) - 1)

    def turned(found: re.Match[str]) -> str:
        target = _outside(found[1], page.file.src_uri, docs)
        return found[1] if target is None else f"{up}source/{target}.txt"

    return _LINK.sub(turned, markdown)
