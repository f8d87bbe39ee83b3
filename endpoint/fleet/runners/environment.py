"""The environment variables of an instance's container, as a process of this machine and as a real container.

A process is not a container; three things differ from SageMaker. The model directory is not /opt/ml/model:
SM_MODEL_DIR and, if it holds anything, LONGHAUL_MODEL name it, and values in the model's Environment that are
/opt/ml/model or below name their place there. EnableNetworkIsolation takes AWS away from the process but can't cut its
network. The second ports of SAGEMAKER_SAFE_PORT_RANGE are ten of an instance's own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from endpoint.fleet.runners.runner import ContainerSpec
from endpoint.settings import Settings

MARKER = "ENDPOINT_INSTANCE_ID"
"""Variable in each instance's environment, by which a process is found whose pid a killed gateway didn't write down."""
JOURNAL_VARIABLE = "LONGHAUL_CHECKPOINT_URI"
MODEL_MOUNT = "/opt/ml/model"
PORT = 8080
"""Port of the HTTP server in a real container."""

_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
_FIRST_SAFE_PORT, _LAST_SAFE_PORT, _SAFE_PORTS = 23000, 23999, 10


def process_environment(settings: Settings, spec: ContainerSpec, own: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return all variables of the process: of the developer's own (`own`) only what a program needs to run."""
    variables = {name: own[name] for name in (*_INHERITED, *settings.pass_environment) if name in own}
    variables |= {  # nothing leads to the developer's own AWS, whose files are under HOME
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    variables |= _aws(settings, spec, settings.url)
    variables["SM_MODEL_DIR"] = str(spec.model_dir)
    if any(spec.model_dir.iterdir()):
        variables["LONGHAUL_MODEL"] = str(spec.model_dir)
    for name, value in spec.variables.items():
        is_in_model = value == MODEL_MOUNT or value.startswith(f"{MODEL_MOUNT}/")
        variables[name] = str(spec.model_dir) + value.removeprefix(MODEL_MOUNT) if is_in_model else value
    first = _FIRST_SAFE_PORT + spec.slot * _SAFE_PORTS % (_LAST_SAFE_PORT + 1 - _FIRST_SAFE_PORT)
    return variables | {
        "SAGEMAKER_BIND_TO_PORT": str(spec.port),
        "SAGEMAKER_SAFE_PORT_RANGE": f"{first}-{first + _SAFE_PORTS - 1}",
        MARKER: spec.instance_id,
    }


def container_environment(
    settings: Settings, spec: ContainerSpec, url: str, own: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the variables that are added to those of the image. AWS's API is at `url`, as seen from inside."""
    variables = {name: own[name] for name in settings.pass_environment if name in own}
    variables |= _aws(settings, spec, url)
    variables |= {"SM_MODEL_DIR": MODEL_MOUNT} | spec.variables
    return variables | {
        "SAGEMAKER_BIND_TO_PORT": str(PORT),
        "SAGEMAKER_SAFE_PORT_RANGE": f"{_FIRST_SAFE_PORT}-{_LAST_SAFE_PORT}",
        MARKER: spec.instance_id,
    }


def _aws(settings: Settings, spec: ContainerSpec, url: str) -> dict[str, str]:
    variables = {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_REGION": settings.region,
        "AWS_DEFAULT_REGION": settings.region,
    }
    if not spec.is_isolated:
        variables |= {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": settings.account,  # the emulator takes an account's number from there
            "AWS_SECRET_ACCESS_KEY": "local",
        }
    if spec.journal_uri is not None:
        variables[JOURNAL_VARIABLE] = spec.journal_uri
    return variables
