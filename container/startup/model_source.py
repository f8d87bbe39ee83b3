"""Where the model is: a directory, SageMaker's model directory, or a hub repository fetched to the local cache."""

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
    """A local directory, or a hub id that is still to be fetched. Raises BadSetting if there is none."""
    if settings.model is not None:
        _check(settings.model)
        return settings.model
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


def _check(model: str) -> None:
    """What can be seen at once; whether a hub has such a model shows later."""
    directory = Path(model)
    if directory.is_dir():
        _check_readable(directory)
    if not directory.is_dir() and (model.startswith(("/", ".")) or model.count("/") > 1):
        raise BadSetting(f"LONGHAUL_MODEL is {model!r}, which is no directory and no hub id")
    if directory.is_dir() and not (directory / "config.json").is_file():
        raise BadSetting(f"LONGHAUL_MODEL is {model!r}, a directory that holds no model: it has no config.json")


def _check_readable(directory: Path) -> None:
    """Libraries take a file that they may not read for one that isn't there."""
    for path in (directory, *_model_files(directory)):
        if path.is_symlink() and not path.exists():
            raise BadSetting(f"{path} is a link to {os.readlink(path)}, which is not there: give what it links to, too")
        if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
            raise BadSetting(
                f"user {os.getuid()} may not read {path} (mode {path.lstat().st_mode & 0o7777:o}): "
                f"chmod -R a+rX {directory}, or run as its owner"
            )


def _model_files(directory: Path) -> list[Path]:
    """What is in it that would be used; nothing of what may not be listed."""
    try:
        return [path for path in directory.iterdir() if any(path.match(pattern) for pattern in _ALWAYS + _WEIGHTS)]
    except PermissionError:
        return []


def local_directory(model: str, settings: Settings) -> str:
    """The model's directory, downloaded first if `model` is a hub id. Takes as long as that takes.

    Only what is used is fetched: no pickles and no code unless switched on.
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
        raise BadSetting(f"{model} is no directory, and can't be fetched from the hub: {error}") from error
