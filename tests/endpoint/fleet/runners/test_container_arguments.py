"""What `docker create` is given for a container, without an engine."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from endpoint.aws.instance_types import find_instance_type
from endpoint.fleet.runners.container_arguments import (
    Place,
    create_arguments,
    image_candidates,
    passed_variables,
)

ECR = "123456789012.dkr.ecr.us-east-1.amazonaws.com"
DIGEST = "sha256:" + "0f" * 32


def arguments(program: str = "docker", **changes: Any) -> list[str]:
    given: dict[str, Any] = {
        "name": "longhaul-i-1",
        "image": "longhaul:test",
        "place": Place(network="longhaul-abc", port=41234),
        "model_dir": Path("/data/models/m"),
        "labels": {"longhaul.instance": "i-1"},
        "variables": {"MODE": "fast"},
        "limits": None,
        "cpu_count": 8,
        "with_gpus": False,
    }
    return create_arguments(program, **given | changes)


def values(found: list[str], option: str) -> list[str]:
    return [argument.partition("=")[2] for argument in found if argument.startswith(f"{option}=")]


def test_container_is_created_as_sagemaker_runs_it() -> None:
    found = arguments()
    assert found[0] == "create" and found[-2:] == ["longhaul:test", "serve"]
    assert values(found, "--name") == ["longhaul-i-1"] and values(found, "--pull") == ["never"]
    assert values(found, "--shm-size") == ["64m"]
    assert values(found, "--mount") == ["type=bind,source=/data/models/m,target=/opt/ml/model,readonly"]
    assert values(found, "--network") == ["longhaul-abc"]
    assert values(found, "--publish") == ["127.0.0.1:41234:8080"]
    assert values(found, "--label") == ["longhaul.instance=i-1"]
    assert not {"-t", "--tty", "-i", "--interactive", "--init", "--privileged"} & set(found)
    assert not [name for name in ("--memory", "--cpus", "--gpus", "--dns") if values(found, name)]


def test_isolated_container_publishes_no_port() -> None:
    found = arguments(place=Place(network="longhaul-abc-isolated", port=None))
    assert values(found, "--network") == ["longhaul-abc-isolated"]
    assert values(found, "--publish") == [] and values(found, "--dns") == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("name", "cpu_count", "memory", "cpus"),
    [
        ("ml.m5.xlarge", 8, "17179869184b", "4"),
        ("ml.c5.large", 8, "4294967296b", "2"),
        ("ml.g5.12xlarge", 8, "206158430208b", "8"),  # no more processors than the machine has
        ("ml.c4.large", 1, "4026531840b", "1"),
    ],
    ids=lambda value: str(value),
)
def test_limits_are_the_instance_types(name: str, cpu_count: int, memory: str, cpus: str) -> None:
    found = arguments(limits=find_instance_type(name), cpu_count=cpu_count)
    assert values(found, "--memory") == values(found, "--memory-swap") == [memory]
    assert values(found, "--cpus") == [cpus]


@pytest.mark.parametrize(("program", "option"), [("docker", "--gpus=all"), ("podman", "--device=nvidia.com/gpu=all")])
def test_gpus_are_given_in_engines_words(program: str, option: str) -> None:
    assert option in arguments(program, with_gpus=True)
    assert option not in arguments(program)


def test_model_directory_may_have_any_name() -> None:
    (mount,) = values(arguments(model_dir=Path('/a,b "c"')), "--mount")
    assert next(csv.reader([mount])) == ["type=bind", 'source=/a,b "c"', "target=/opt/ml/model", "readonly"]


def test_secrets_are_in_no_argument() -> None:
    variables = {"HF_TOKEN": "secret", "GOOGLE_API_KEY": "secret", "TEXT": "two\nlines"}
    found = arguments(variables=variables)
    assert [found[at + 1] for at, argument in enumerate(found) if argument == "--env"] == list(variables)
    assert passed_variables(variables) == variables


@pytest.mark.parametrize("name", ["PATH", "LD_PRELOAD", "DOCKER_HOST", "https_proxy", "TMPDIR", "GODEBUG", "HOME"])
def test_variables_of_clients_are_arguments(name: str) -> None:
    found = arguments(variables={name: "a=b"})
    assert found[found.index("--env") + 1] == f"{name}=a=b"
    assert passed_variables({name: "a=b"}) == {}


@pytest.mark.parametrize(
    ("image", "candidates"),
    [
        ("longhaul", ["longhaul"]),
        ("longhaul:1.0", ["longhaul:1.0"]),
        (f"longhaul@{DIGEST}", [f"longhaul@{DIGEST}"]),
        ("registry.example.com:5000/team/longhaul:1.0", ["registry.example.com:5000/team/longhaul:1.0"]),
        (f"{ECR}/longhaul:1.0", [f"{ECR}/longhaul:1.0", "longhaul:1.0"]),
        (f"{ECR}/team/longhaul", [f"{ECR}/team/longhaul", "team/longhaul"]),
        (f"{ECR}/longhaul@{DIGEST}", [f"{ECR}/longhaul@{DIGEST}", f"longhaul@{DIGEST}"]),
        (f"{ECR}.cn/longhaul:1", [f"{ECR}.cn/longhaul:1", "longhaul:1"]),
        ("--privileged", []),
        ("a b", []),
    ],
)
def test_image_is_looked_for_under_names(image: str, candidates: list[str]) -> None:
    assert image_candidates(image) == candidates
