"""The arguments of `docker create` for a container as SageMaker runs it. Pure: nothing here asks an engine."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from endpoint.aws.instance_types import InstanceType
from endpoint.control_plane.environment_rules import would_hijack
from endpoint.fleet.runners.environment import MODEL_MOUNT, PORT

SHM_SIZE = "64m"
"""Size of /dev/shm, SageMaker's and Docker's default."""
_LOG_OPTIONS = {
    # The engine's own copy of the output bridges the death of a follower only: it needn't keep all of it.
    "docker": ("--log-driver=json-file", "--log-opt=max-size=100m", "--log-opt=max-file=3"),
    "podman": ("--log-driver=k8s-file",),
}
_GPU_OPTIONS = {"docker": "--gpus=all", "podman": "--device=nvidia.com/gpu=all"}
_ECR = re.compile(r"\d{12}\.dkr\.ecr(-fips)?\.[a-z0-9-]+\.(amazonaws\.com(\.cn)?|on\.aws)/(?P<name>.+)")
_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*")
_READ_BY_CLIENTS = re.compile(
    r"(docker_|buildkit_|buildx_|containers?_|podman_|registry_|xdg_|grpc_|otel_|ssh_a|ssl_cert_|endpoint_)"
    r"|(http|https|ftp|no|all)_proxy$|(tmpdir|godebug|gotraceback|gomaxprocs|gogc|gomemlimit)$",
    re.IGNORECASE,
)
"""Variables that engines' clients read for themselves, or that mark our calls of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A container's place: its network, and its port of 127.0.0.1."""

    network: str
    port: int | None
    """Port at which it is published; None in a network without a way out."""


def image_candidates(image: str) -> list[str]:
    """Return the names under which an engine may have the image: an ECR repository's also without its registry."""
    if not _REFERENCE.fullmatch(image):
        return []
    ecr = _ECR.fullmatch(image)
    return [image] if ecr is None else [image, ecr["name"]]


def create_arguments(
    program: str,
    *,
    name: str,
    image: str,
    place: Place,
    model_dir: Path,
    labels: Mapping[str, str],
    variables: Mapping[str, str],
    limits: InstanceType | None,
    cpu_count: int,
    with_gpus: bool,
) -> list[str]:
    """Return the arguments of the client `program`; `passed_variables` has what its environment must have.

    `limits` are those of the instance type, or None; more than the machine's `cpu_count` can't be given.
    """
    arguments = ["create", f"--name={name}", "--pull=never", f"--shm-size={SHM_SIZE}", *_LOG_OPTIONS[program]]
    arguments += [f"--label={key}={value}" for key, value in labels.items()]
    arguments.append(f"--mount={_mount(model_dir)}")
    arguments.append(f"--network={place.network}")
    if place.port is None:
        # Nobody answers there. Without a name server of its own, the engine asks the host's for it: a way out.
        arguments += ["--dns=127.0.0.1", "--dns-option=timeout:1", "--dns-option=attempts:1"]
    else:
        arguments.append(f"--publish=127.0.0.1:{place.port}:{PORT}")
    if limits is not None:
        memory = f"{limits.memory_bytes}b"
        arguments += [f"--memory={memory}", f"--memory-swap={memory}", f"--cpus={min(limits.vcpus, cpu_count)}"]
    if with_gpus:
        arguments.append(_GPU_OPTIONS[program])
    passed = passed_variables(variables)
    for key, value in variables.items():
        arguments += ["--env", key if key in passed else f"{key}={value}"]
    return [*arguments, image, "serve"]


def passed_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the client takes from its own environment, so that no list of processes shows them.

    The others would change what the client itself does: their values are arguments.
    """
    return {
        name: value for name, value in variables.items() if not would_hijack(name) and not _READ_BY_CLIENTS.match(name)
    }


def _mount(model_dir: Path) -> str:
    """Return the value of --mount, which is a line of CSV."""
    fields: Sequence[str] = ("type=bind", f"source={model_dir}", f"target={MODEL_MOUNT}", "readonly")
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(fields)
    return line.getvalue()
