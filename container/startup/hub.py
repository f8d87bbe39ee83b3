"""A model fetched from a hub to its local cache: each weight once, in the form that is loaded.

Many repositories hold the same weights several times: in other formats, in folders, whole beside shards.
"""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from container.settings import BadSetting
from container.startup.hub_files import choose_weights, find_folder, list_support_files, read_shards


def fetch(model: str, *, revision: str | None, token: str | None, allow_pickle: bool, with_code: bool) -> str:
    """Download what a model needs and return its directory. Without a connection, what is in the cache has to do.

    Raises BadSetting.
    """
    source: dict[str, Any] = {"revision": revision, "token": token}
    try:
        from huggingface_hub import HfApi, hf_hub_download, snapshot_download
        from huggingface_hub.errors import RevisionNotFoundError

        try:
            siblings = HfApi().model_info(model, **source).siblings
        except (RevisionNotFoundError, ValueError):
            raise
        except Exception as error:  # no connection, no permission, a broken proxy: all the same for a cached model
            return _find_cached(model, source, error)
        folder, files = find_folder(model, [sibling.rfilename for sibling in siblings or ()])
        weights = choose_weights(model, files, allow_pickle=allow_pickle)
        wanted = {weights, *list_support_files(files, with_code=with_code)}
        if weights.endswith(".index.json"):
            index = Path(hf_hub_download(model, folder + weights, **source))
            wanted |= read_shards(model, weights, index.read_bytes(), files)
        patterns = [glob.escape(folder + name) for name in sorted(wanted)]
        return str(Path(snapshot_download(model, **source, allow_patterns=patterns), folder))
    except BadSetting:
        raise
    except Exception as error:  # of several libraries
        raise BadSetting(f"{model} is not a directory and can't be fetched from the hub: {error}") from error


def _find_cached(model: str, source: dict[str, Any], why: Exception) -> str:
    """Return the directory in which the model was fetched before. Raises `why` if it was not, and BadSetting."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot = snapshot_download(model, **source, local_files_only=True, allow_patterns=["config.json"])
    except LocalEntryNotFoundError:
        raise why from None
    names = [path.relative_to(snapshot).as_posix() for path in Path(snapshot).rglob("*") if path.is_file()]
    return str(Path(snapshot, find_folder(model, names)[0]))
