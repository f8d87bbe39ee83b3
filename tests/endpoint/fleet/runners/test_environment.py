from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from endpoint.fleet.runners.environment import container_environment
from endpoint.fleet.runners.runner import ContainerSpec
from endpoint.settings import Settings
from endpoint.state.catalog import Deployment

URL = "http://172.20.0.1:4566"


def environment(
    own: dict[str, str] | None = None, settings: dict[str, Any] | None = None, is_isolated: bool = False, **given: str
) -> dict[str, str]:
    model = {"PrimaryContainer": {"Image": "i", "Environment": given}, "EnableNetworkIsolation": is_isolated}
    config = {"ProductionVariants": [{"VariantName": "main", "ModelName": "m"}]}
    spec = ContainerSpec(
        instance_id="i-1",
        slot=3,
        endpoint="e",
        deployment=Deployment(config=config, model=model),
        model_dir=Path("/data/models/x"),
        port=41234,
        journal_uri=None if is_isolated else "s3://journals/e/main",
        log=Path("/data/instances/i-1/log"),
    )
    values: dict[str, Any] = {"data_dir": Path("/data"), "region": "eu-west-1", **(settings or {})}
    return container_environment(Settings(**values), spec, URL, own or {})


def test_container_has_sagemakers_own_values() -> None:
    assert environment({"PATH": "/mine", "HF_TOKEN": "mine"}) == {
        "AWS_REGION": "eu-west-1",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": URL,
        "AWS_ACCESS_KEY_ID": "000000000000",
        "AWS_SECRET_ACCESS_KEY": "local",
        "LONGHAUL_CHECKPOINT_URI": "s3://journals/e/main",
        "SM_MODEL_DIR": "/opt/ml/model",
        "SAGEMAKER_BIND_TO_PORT": "8080",
        "SAGEMAKER_SAFE_PORT_RANGE": "23000-23999",
        "ENDPOINT_INSTANCE_ID": "i-1",
    }


def test_models_environment_stays_as_it_is() -> None:
    given = environment(HF_MODEL_ID="/opt/ml/model/deep", PATH="/opt/bin", AWS_REGION="us-west-2")
    assert given["HF_MODEL_ID"] == "/opt/ml/model/deep"
    assert (given["PATH"], given["AWS_REGION"]) == ("/opt/bin", "us-west-2")


@pytest.mark.parametrize("name", ["SAGEMAKER_BIND_TO_PORT", "SAGEMAKER_SAFE_PORT_RANGE", "ENDPOINT_INSTANCE_ID"])
def test_platforms_variables_cannot_be_changed(name: str) -> None:
    assert environment(**{name: "mine"})[name] != "mine"


def test_isolated_container_has_no_aws() -> None:
    given = environment(is_isolated=True)
    assert not {"AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "LONGHAUL_CHECKPOINT_URI"} & set(
        given
    )


def test_named_variables_of_gateway_are_passed() -> None:
    given = environment({"HTTPS_PROXY": "http://proxy", "OTHER": "x"}, {"pass_environment": ("HTTPS_PROXY", "ABSENT")})
    assert given["HTTPS_PROXY"] == "http://proxy" and not {"OTHER", "ABSENT"} & set(given)
