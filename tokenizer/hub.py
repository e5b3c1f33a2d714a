"""Names on the Hugging Face hub: told from paths, and refused at once where it cannot be reached.

`huggingface_hub` asks for a file that is not in its cache, asks five times more, and ends with a
page about the network; all of that for a mistyped folder, too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tokenizer.errors import MissingFileError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SHORT_ID = re.compile(r"[A-Za-z0-9][\w.-]*")  # The hub's own, such as "t5-small".


def check_name(
    name: str | Path,
    *,
    short: bool = False,
    subfolder: str | None = None,
    revision: str | None = None,
    token: bool | str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    **_: Any,
) -> None:
    """Raises FileNotFoundError for the name of a model that is neither here nor on the hub.

    A name that the hub could not have, or whose folder is here, is a path, and the hub is not
    asked; any other is looked up in the cache of the hub, or else asked for once.

    Args:
        name: A folder, or "owner/model".
        short: Whether "model" is a name on the hub as well.
        subfolder: As for ``from_pretrained``, like all further arguments.
        revision: Likewise.
        token: Likewise.
        cache_dir: Likewise.
        local_files_only: Likewise.
    """
    text = str(name)
    if Path(text).exists():
        return
    if not _HUB_ID.fullmatch(text) and not (short and _SHORT_ID.fullmatch(text)):
        raise MissingFileError(f"No such checkpoint folder: {text}.")
    parent = Path(text).parent
    if parent != Path() and parent.exists():
        raise MissingFileError(
            f"No such checkpoint folder: {text}. {parent} is a folder here: the hub is not asked."
        )
    if local_files_only:  # The library says by itself that the cache lacks it.
        return
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(cache_dir or huggingface_hub.constants.HF_HUB_CACHE)
    repository = cache / repo_folder_name(repo_id=text, repo_type="model")
    if any(repository.glob("snapshots/*/*")):  # A pipeline has its files in any subfolder.
        return
    try:
        url = huggingface_hub.hf_hub_url(
            text, "config.json", subfolder=subfolder, revision=revision
        )
        huggingface_hub.get_hf_file_metadata(url, token=token)
    except (HfHubHTTPError, OfflineModeIsEnabled):
        return  # The library says it better: which file is missing, or that a token is.
    except Exception as error:  # Of httpx or requests: that differs among its versions.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MissingFileError(
            f"{text} is no folder here, nor in the cache of the hub, which cannot be reached:"
            f" {reason}."
        ) from error
