"""Finds, at import, other distributions that own our import names, and says what to do."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from tokenizer.errors import PackageClashError

# Distributions known to install a package of one of our names, and those that could by their own
# name. To list what every installed distribution owns would take half a second at every import.
RIVALS = (
    ("tokenizer", "tokenizer"),
    ("monai-generative", "generative"),
    ("generative", "generative"),
    ("datasets-scripts", "datasets_scripts"),
)


def check_clash() -> None:
    """Refuses to go on beside a distribution that installs a package of the same name as ours.

    In one folder the later installation overwrites files of the earlier one, in two folders the
    first on ``sys.path`` hides the other, and what fails then looks unrelated.

    Raises:
        PackageClashError: If there is one; the message names it and the way out.
    """
    for name, package in RIVALS:
        try:
            rival = distribution(name)
        except PackageNotFoundError:
            continue
        # Some installers keep no list of files; then the distribution's name has to do.
        if rival.files is None or any(file.parts[0] == package for file in rival.files):
            folder = Path(str(rival.locate_file(""))).resolve()
            raise PackageClashError(
                f"latent-tokenizer cannot share an environment with {name} {rival.version} (in"
                f" {folder}): both install a package named {package!r}. Use a fresh environment"
                f" (python -m venv), or run `pip uninstall {name} latent-tokenizer` and install"
                " latent-tokenizer again."
            )
