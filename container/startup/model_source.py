"""The model's files: in a directory, in SageMaker's model directory, or fetched from a hub to the local cache."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from container.settings import SAGEMAKER_MODEL_DIR, BadSetting, Settings
from container.startup.hub import fetch
from container.startup.model_folder import check_readable, find_model_folder, name_contents

logger = logging.getLogger(__name__)


def find_model(settings: Settings, sagemaker_dir: str = SAGEMAKER_MODEL_DIR) -> str:
    """Return a local directory, or a hub id that is still to be fetched. Raises BadSetting if there is none."""
    if (model := settings.model) is not None:
        if Path(model).is_dir():
            return _look_into("LONGHAUL_MODEL", model)
        if model.startswith(("/", ".")) or model.count("/") > 1:  # else a hub may have it, which shows later
            raise BadSetting(f"LONGHAUL_MODEL is {model!r}, which is neither a directory nor a hub id")
        return model
    directory = Path(sagemaker_dir)
    if os.access(directory / "config.json", os.F_OK):
        _check(directory)
        return sagemaker_dir
    if (hub_id := settings.hf_model_id) is not None:
        return _look_into("HF_MODEL_ID", hub_id) if Path(hub_id).is_dir() else hub_id
    if directory.is_dir():
        check_readable(directory)
        if folder := find_model_folder(directory):
            _check(folder)
            return str(folder)
    raise BadSetting(
        f"no model: set LONGHAUL_MODEL to a directory or hub id, put one into {sagemaker_dir}, or set HF_MODEL_ID"
    )


def _look_into(variable: str, directory: str) -> str:
    """Return the model's folder in the directory that a variable names. Raises BadSetting."""
    check_readable(Path(directory))
    folder = find_model_folder(Path(directory))
    if folder is None:
        raise BadSetting(
            f"{variable} is {directory!r}, a directory that holds no model: there is no config.json in it or below"
        )
    _check(folder)
    return directory if folder == Path(directory) else str(folder)


def _check(folder: Path) -> None:
    """Raise BadSetting for a model's folder that lacks something."""
    check_readable(folder)
    weights = [*folder.glob("model*.safetensors"), *folder.glob("pytorch_model*.bin")]
    if not weights and (folder / "adapter_config.json").is_file():  # saved beside its base's config.json
        raise BadSetting(f"{folder} holds no model that can be served: {name_contents(['adapter_config.json'])}")


def local_directory(model: str, settings: Settings) -> str:
    """Return the model's directory. A hub id is downloaded first, without pickles and code unless switched on.

    Raises BadSetting if it can't be downloaded.
    """
    if Path(model).is_dir():
        return str(Path(model).resolve())
    logger.info("fetching the model", extra={"action": "model_fetch", "model": model})
    return fetch(
        model,
        revision=settings.hf_model_revision,
        token=settings.hf_token,
        allow_pickle=settings.allow_pickle,
        with_code=settings.trust_remote_code,
    )
