"""The model's files: in a directory, in SageMaker's model directory, or fetched from a hub to the local cache."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from container.settings import SAGEMAKER_MODEL_DIR, BadSetting, Settings

logger = logging.getLogger(__name__)

_ALWAYS = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
_WEIGHTS = ["*.safetensors"]
_PICKLES = ["*.bin"]
_CODE = ["*.py"]


def find_model(settings: Settings, sagemaker_dir: str = SAGEMAKER_MODEL_DIR) -> str:
    """Return a local directory, or a hub id that is still to be fetched. Raises BadSetting if there is none."""
    if (model := settings.model) is not None:
        directory = Path(model)
        if directory.is_dir():
            _check_readable(directory)
            if not (directory / "config.json").is_file():
                raise BadSetting(f"LONGHAUL_MODEL is {model!r}, a directory that holds no model: it has no config.json")
        elif model.startswith(("/", ".")) or model.count("/") > 1:  # else a hub may have it, which shows later
            raise BadSetting(f"LONGHAUL_MODEL is {model!r}, which is neither a directory nor a hub id")
        return model
    directory = Path(sagemaker_dir)
    if settings.hf_model_id is None and directory.is_dir():
        _check_readable(directory)
    if os.access(directory / "config.json", os.F_OK):
        _check_readable(directory)
        return sagemaker_dir
    if settings.hf_model_id is not None:
        return settings.hf_model_id
    raise BadSetting(
        f"no model: set LONGHAUL_MODEL to a directory or hub id, put one into {sagemaker_dir}, or set HF_MODEL_ID"
    )


def _check_readable(directory: Path) -> None:
    """Raise BadSetting for files that may not be read, which libraries would take for missing ones."""
    try:
        files = [path for path in directory.iterdir() if any(map(path.match, _ALWAYS + _WEIGHTS))]
    except PermissionError:
        files = []
    for path in (directory, *files):
        if path.is_symlink() and not path.exists():
            raise BadSetting(f"{path} is a link to {os.readlink(path)}, which is not there: give what it links to, too")
        if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
            raise BadSetting(
                f"user {os.getuid()} may not read {path} (mode {path.lstat().st_mode & 0o7777:o}): "
                f"chmod -R a+rX {directory}, or run as its owner"
            )


def local_directory(model: str, settings: Settings) -> str:
    """Return the model's directory. A hub id is downloaded first, without pickles and code unless switched on.

    Raises BadSetting if it can't be downloaded.
    """
    if Path(model).is_dir():
        return str(Path(model).resolve())
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    wanted = _ALWAYS + _WEIGHTS
    if settings.allow_pickle:
        wanted += _PICKLES
    if settings.trust_remote_code:
        wanted += _CODE
    logger.info("fetching the model", extra={"action": "model_fetch", "model": model})
    try:
        return snapshot_download(
            model, revision=settings.hf_model_revision, token=settings.hf_token, allow_patterns=wanted
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, OSError, ValueError) as error:
        raise BadSetting(f"{model} is not a directory and can't be fetched from the hub: {error}") from error
