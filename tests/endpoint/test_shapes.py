"""Every implemented operation over the one port: responses to unmodified boto3, and refusals."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from botocore.exceptions import ClientError, WaiterError

from testing.endpoint.botocore_wire import client
from testing.endpoint.endpoint_up import BUCKET, ROLE, EndpointUp
from testing.endpoint.witness import Witness, check_raw

ARN = "arn:aws:sagemaker:us-east-1:000000000000:"
TOPIC = "arn:aws:sns:us-east-1:000000000000:"
KEY = "arn:aws:kms:us-east-1:000000000000:key/one"
SOON = {"Delay": 0.1, "MaxAttempts": 600}
TAGS = [{"Key": "team", "Value": "night"}]
VPC = {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]}

FULL_MODEL: dict[str, Any] = {
    "ModelName": "full",
    "PrimaryContainer": {
        "Image": "000000000000.dkr.ecr.us-east-1.amazonaws.com/longhaul:1",
        "ContainerHostname": "host",
        "ImageConfig": {"RepositoryAccessMode": "Platform"},
        "Mode": "SingleModel",
        "ModelDataSource": {
            "S3DataSource": {
                "S3Uri": f"s3://{BUCKET}/model/",
                "S3DataType": "S3Prefix",
                "CompressionType": "None",
                "ModelAccessConfig": {"AcceptEula": True},
            }
        },
        "Environment": {"A": "b"},
    },
    "ExecutionRoleArn": ROLE,
    "VpcConfig": VPC,
    "EnableNetworkIsolation": True,
    "Tags": TAGS,
}
FULL_CONFIG: dict[str, Any] = {
    "EndpointConfigName": "full",
    "ProductionVariants": [
        {
            "VariantName": "main",
            "ModelName": "full",
            "InstanceType": "ml.m5.large",
            "InitialInstanceCount": 1,
            "InitialVariantWeight": 0.5,
            "VolumeSizeInGB": 100,
            "ModelDataDownloadTimeoutInSeconds": 600,
            "ContainerStartupHealthCheckTimeoutInSeconds": 600,
            "EnableSSMAccess": False,
            "RoutingConfig": {"RoutingStrategy": "LEAST_OUTSTANDING_REQUESTS"},
        }
    ],
    "AsyncInferenceConfig": {
        "ClientConfig": {"MaxConcurrentInvocationsPerInstance": 4},
        "OutputConfig": {
            "KmsKeyId": KEY,
            "S3OutputPath": f"s3://{BUCKET}/out",
            "S3FailurePath": f"s3://{BUCKET}/failed",
            "NotificationConfig": {
                "SuccessTopic": f"{TOPIC}good",
                "ErrorTopic": f"{TOPIC}bad",
                "IncludeInferenceResponseIn": ["SUCCESS_NOTIFICATION_TOPIC", "ERROR_NOTIFICATION_TOPIC"],
            },
        },
    },
    "KmsKeyId": KEY,
    "ExecutionRoleArn": ROLE,
    "VpcConfig": VPC,
    "Tags": TAGS,
}
DEPLOYMENT = {
    "BlueGreenUpdatePolicy": {
        "TrafficRoutingConfiguration": {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 0},
        "TerminationWaitInSeconds": 0,
    }
}


def variant(model: str = "plain") -> dict[str, Any]:
    return {"VariantName": "main", "ModelName": model, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}


def async_config(**output: Any) -> dict[str, Any]:
    return {"OutputConfig": {"S3OutputPath": f"s3://{BUCKET}/out", "S3FailurePath": f"s3://{BUCKET}/failed"} | output}


class World:
    """`lives`, `changes` and `scales` are asynchronous endpoints in service, `sync` is one that isn't asynchronous.

    Models: full, plain, goes; configs: full, plain, other, goes, sync, broken (whose model has no data).
    """

    def __init__(self, up: EndpointUp) -> None:
        self.up = up
        self.witness = Witness(up.url)
        self.sagemaker = self.witness.client("sagemaker")
        self.runtime = self.witness.client("sagemaker-runtime")
        # Sends what botocore itself would refuse.
        self.careless = {
            "sagemaker": self.witness.client("sagemaker", parameter_validation=False),
            "sagemaker-runtime": self.witness.client("sagemaker-runtime", parameter_validation=False),
        }

    def make(self) -> None:
        self.up.make_places()
        make = self.sagemaker
        make.create_model(**FULL_MODEL)
        for name in ("plain", "goes"):
            make.create_model(ModelName=name, PrimaryContainer={"Image": "told:1"}, ExecutionRoleArn=ROLE)
        data = {"Image": "told:1", "ModelDataUrl": f"s3://{BUCKET}/nothing.tar.gz"}
        make.create_model(ModelName="broken", PrimaryContainer=data, ExecutionRoleArn=ROLE)
        make.create_endpoint_config(**FULL_CONFIG)
        for name, model in {"plain": "plain", "other": "plain", "goes": "goes", "broken": "broken"}.items():
            make.create_endpoint_config(
                EndpointConfigName=name, ProductionVariants=[variant(model)], AsyncInferenceConfig=async_config()
            )
        make.create_endpoint_config(EndpointConfigName="sync", ProductionVariants=[variant()])
        made = {"lives": "plain", "changes": "plain", "scales": "plain", "sync": "sync"}
        for name, config in made.items():
            make.create_endpoint(EndpointName=name, EndpointConfigName=config, Tags=TAGS)
        for name in made:
            make.get_waiter("endpoint_in_service").wait(EndpointName=name, WaiterConfig=SOON)

    def status(self, endpoint: str) -> str:
        status: str = self.sagemaker.describe_endpoint(EndpointName=endpoint)["EndpointStatus"]
        return status


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    up = EndpointUp(tmp_path_factory.mktemp("up"))
    try:
        world = World(up)
        world.make()
        yield world
        world.witness.close()
    finally:
        up.close()


# The witness itself

ENDPOINTS = [
    {"EndpointName": "e", "EndpointArn": ARN, "CreationTime": 1.5, "LastModifiedTime": 2, "EndpointStatus": "s"}
]


@pytest.mark.parametrize(
    "changes",
    [
        {"EndpointName": None},
        {"EndpointName": 1},
        {"CreationTime": "2020-01-01T00:00:00Z"},
        {"EndpointStatus": ...},
        {"Mood": "good"},
    ],
    ids=str,
)
def test_witness_detects_wrong_shapes(changes: dict[str, Any]) -> None:
    shape = client("sagemaker").meta.service_model.operation_model("ListEndpoints").output_shape
    check_raw(shape, {"Endpoints": ENDPOINTS}, "list")
    endpoint = {name: value for name, value in (ENDPOINTS[0] | changes).items() if value is not ...}
    with pytest.raises(AssertionError, match=r"list\.Endpoints"):
        check_raw(shape, {"Endpoints": [endpoint]}, "list")


# Answers

PAGE = {"MaxResults": 2, "NameContains": "l", "SortOrder": "Ascending"}
LONG_AGO, FAR_OFF = datetime(2020, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
CREATED = {"CreationTimeAfter": LONG_AGO, "CreationTimeBefore": FAR_OFF}

ANSWERED: list[tuple[str, dict[str, Any]]] = [
    ("create_model", FULL_MODEL | {"ModelName": "new"}),
    ("describe_model", {"ModelName": "full"}),
    ("describe_model", {"ModelName": "plain"}),
    ("list_models", {}),
    ("list_models", PAGE | CREATED | {"SortBy": "Name"}),
    ("delete_model", {"ModelName": "goes"}),
    ("create_endpoint_config", FULL_CONFIG | {"EndpointConfigName": "new"}),
    ("describe_endpoint_config", {"EndpointConfigName": "full"}),
    ("describe_endpoint_config", {"EndpointConfigName": "sync"}),
    ("list_endpoint_configs", {}),
    ("list_endpoint_configs", PAGE | CREATED | {"SortBy": "CreationTime"}),
    ("delete_endpoint_config", {"EndpointConfigName": "goes"}),
    ("create_endpoint", {"EndpointName": "new", "EndpointConfigName": "plain", "DeploymentConfig": DEPLOYMENT}),
    ("describe_endpoint", {"EndpointName": "lives"}),
    ("describe_endpoint", {"EndpointName": "sync"}),
    ("describe_endpoint", {"EndpointName": "new"}),
    ("list_endpoints", {}),
    ("list_endpoints", PAGE | CREATED | {"SortBy": "Status", "StatusEquals": "InService"}),
    ("list_endpoints", {"LastModifiedTimeAfter": LONG_AGO, "LastModifiedTimeBefore": FAR_OFF}),
    (
        "update_endpoint",
        {
            "EndpointName": "changes",
            "EndpointConfigName": "other",
            "RetainAllVariantProperties": True,
            "ExcludeRetainedVariantProperties": [{"VariantPropertyType": "DesiredWeight"}],
            "DeploymentConfig": DEPLOYMENT,
        },
    ),
    ("describe_endpoint", {"EndpointName": "changes"}),
    (
        "update_endpoint_weights_and_capacities",
        {
            "EndpointName": "scales",
            "DesiredWeightsAndCapacities": [{"VariantName": "main", "DesiredInstanceCount": 2, "DesiredWeight": 2.0}],
        },
    ),
    ("describe_endpoint", {"EndpointName": "scales"}),
    ("add_tags", {"ResourceArn": f"{ARN}model/full", "Tags": [{"Key": "mine", "Value": ""}]}),
    ("list_tags", {"ResourceArn": f"{ARN}endpoint/lives"}),
    ("list_tags", {"ResourceArn": f"{ARN}endpoint-config/full", "MaxResults": 50}),
    ("delete_tags", {"ResourceArn": f"{ARN}model/full", "TagKeys": ["mine", "nobody-has-it"]}),
    ("invoke_endpoint_async", {"EndpointName": "lives", "Body": b"input"}),
    (
        "invoke_endpoint_async",
        {
            "EndpointName": "lives",
            "InputLocation": f"s3://{BUCKET}/nothing",
            "ContentType": "application/json",
            "Accept": "text/csv",
            "CustomAttributes": "do=echo",
            "InferenceId": "mine",
            "RequestTTLSeconds": 60,
            "InvocationTimeoutSeconds": 10,
            "S3OutputPathExtension": "a/b",
            "Filename": "answer.json",
        },
    ),
    ("invoke_endpoint", {"EndpointName": "sync", "Body": b"input"}),
    (
        "invoke_endpoint",
        {
            "EndpointName": "sync",
            "Body": b"input",
            "ContentType": "application/json",
            "Accept": "text/csv",
            "CustomAttributes": "do=echo",
            "TargetVariant": "main",
            "InferenceId": "mine",
        },
    ),
]


def service_of(operation: str) -> str:
    return "sagemaker-runtime" if operation.startswith("invoke") else "sagemaker"


@pytest.mark.parametrize(("operation", "parameters"), ANSWERED, ids=[name for name, _ in ANSWERED])
def test_response_has_its_shape(world: World, operation: str, parameters: dict[str, Any]) -> None:
    caller = world.runtime if service_of(operation) == "sagemaker-runtime" else world.sagemaker
    before = world.witness.answered.total()
    answer = getattr(caller, operation)(**parameters)
    assert "Body" not in answer or answer["Body"].read() == b"input"
    assert world.witness.answered.total() == before + 1


def test_accepted_invocation_returns_202_and_locations(world: World) -> None:
    answer = world.runtime.invoke_endpoint_async(EndpointName="lives", Body=b"x", InferenceId="of the caller")
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 202
    assert answer["InferenceId"] == "of the caller"
    assert re.fullmatch(rf"s3://{BUCKET}/out/[0-9a-f-]{{36}}\.out", answer["OutputLocation"])
    assert re.fullmatch(rf"s3://{BUCKET}/failed/[0-9a-f-]{{36}}-error\.out", answer["FailureLocation"])


def test_sync_response_is_from_container(world: World) -> None:
    answer = world.runtime.invoke_endpoint(EndpointName="sync", Body=b"\x00\xff", ContentType="a/b")
    assert (answer["Body"].read(), answer["ContentType"]) == (b"\x00\xff", "a/b")
    assert answer["InvokedProductionVariant"] == "main"


# Every status that an endpoint can have, and botocore's waiters


def test_waiters_follow_endpoint_creation_and_deletion(world: World) -> None:
    sagemaker = world.sagemaker
    sagemaker.create_endpoint(EndpointName="comes", EndpointConfigName="plain")
    assert world.status("comes") == "Creating"
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName="comes", WaiterConfig=SOON)
    assert world.status("comes") == "InService"
    sagemaker.update_endpoint(EndpointName="comes", EndpointConfigName="other")
    assert world.status("comes") == "Updating"
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName="comes", WaiterConfig=SOON)
    assert sagemaker.describe_endpoint(EndpointName="comes")["EndpointConfigName"] == "other"
    sagemaker.delete_endpoint(EndpointName="comes")
    sagemaker.get_waiter("endpoint_deleted").wait(EndpointName="comes", WaiterConfig=SOON)
    with pytest.raises(ClientError, match="Could not find endpoint"):
        world.status("comes")


def test_waiter_gives_up_on_failed_endpoint(world: World) -> None:
    world.sagemaker.create_endpoint(EndpointName="fails", EndpointConfigName="broken")
    with pytest.raises(WaiterError, match="terminal failure state"):
        world.sagemaker.get_waiter("endpoint_in_service").wait(EndpointName="fails", WaiterConfig=SOON)
    described = world.sagemaker.describe_endpoint(EndpointName="fails")
    assert described["EndpointStatus"] == "Failed" and described["FailureReason"]
    world.sagemaker.delete_endpoint(EndpointName="fails")
    world.sagemaker.get_waiter("endpoint_deleted").wait(EndpointName="fails", WaiterConfig=SOON)


@pytest.mark.parametrize(
    ("operation", "members", "name"),
    [
        ("list_models", "Models", "ModelName"),
        ("list_endpoint_configs", "EndpointConfigs", "EndpointConfigName"),
        ("list_endpoints", "Endpoints", "EndpointName"),
    ],
)
def test_botocore_paginators_see_all_once(world: World, operation: str, members: str, name: str) -> None:
    pages = list(world.sagemaker.get_paginator(operation).paginate(PaginationConfig={"PageSize": 1}))
    seen = [entry[name] for page in pages for entry in page[members]]
    assert len(pages) >= len(seen) >= 3 and len(seen) == len(set(seen))


def test_botocore_paginator_sees_all_tags(world: World) -> None:
    tags = [{"Key": f"key {number}", "Value": "v"} for number in range(49)]
    world.sagemaker.add_tags(ResourceArn=f"{ARN}endpoint/sync", Tags=tags)
    pages = world.sagemaker.get_paginator("list_tags").paginate(ResourceArn=f"{ARN}endpoint/sync")
    seen = {tag["Key"]: tag["Value"] for page in pages for tag in page["Tags"]}
    assert seen == {tag["Key"]: tag["Value"] for tag in [*TAGS, *tags]}


# Errors

VALIDATION = "ValidationException"
BAD_NAME = "-"

ENDPOINT_OPERATIONS: dict[str, dict[str, Any]] = {
    "describe_endpoint": {},
    "delete_endpoint": {},
    "update_endpoint": {"EndpointConfigName": "plain"},
    "update_endpoint_weights_and_capacities": {
        "DesiredWeightsAndCapacities": [{"VariantName": "main", "DesiredInstanceCount": 1}]
    },
}
TAG_OPERATIONS: dict[str, dict[str, Any]] = {
    "add_tags": {"Tags": TAGS},
    "list_tags": {},
    "delete_tags": {"TagKeys": ["k"]},
}

REFUSED: list[tuple[str, dict[str, Any], str, int, str]] = [
    # resources that exist, or don't
    ("create_model", FULL_MODEL, VALIDATION, 400, f'Cannot create already existing model "{ARN}model/full".'),
    ("describe_model", {"ModelName": "No"}, VALIDATION, 400, f'Could not find model "{ARN}model/no".'),
    ("delete_model", {"ModelName": "no"}, VALIDATION, 400, f'Could not find model "{ARN}model/no".'),
    (
        "create_endpoint_config",
        FULL_CONFIG,
        VALIDATION,
        400,
        f'Cannot create already existing endpoint configuration "{ARN}endpoint-config/full".',
    ),
    (
        "create_endpoint_config",
        {"EndpointConfigName": "x", "ProductionVariants": [variant("no")]},
        VALIDATION,
        400,
        f'Could not find model "{ARN}model/no".',
    ),
    *(
        (
            f"{verb}_endpoint_config",
            {"EndpointConfigName": "no"},
            VALIDATION,
            400,
            f'Could not find endpoint configuration "{ARN}endpoint-config/no".',
        )
        for verb in ("describe", "delete")
    ),
    (
        "create_endpoint",
        {"EndpointName": "lives", "EndpointConfigName": "plain"},
        VALIDATION,
        400,
        f'Cannot create already existing endpoint "{ARN}endpoint/lives".',
    ),
    (
        "create_endpoint",
        {"EndpointName": "x", "EndpointConfigName": "no"},
        VALIDATION,
        400,
        f'Could not find endpoint configuration "{ARN}endpoint-config/no".',
    ),
    *(
        (operation, {"EndpointName": "no"} | more, VALIDATION, 400, f'Could not find endpoint "{ARN}endpoint/no".')
        for operation, more in ENDPOINT_OPERATIONS.items()
    ),
    *(
        (
            operation,
            {"ResourceArn": f"{ARN}endpoint/no"} | more,
            VALIDATION,
            400,
            f'Could not find endpoint "{ARN}endpoint/no".',
        )
        for operation, more in TAG_OPERATIONS.items()
    ),
    (
        "add_tags",
        {"ResourceArn": f"{ARN}model/full", "Tags": [{"Key": str(n), "Value": ""} for n in range(50)]},
        "ResourceLimitExceeded",
        400,
        "A resource can have at most 50 tags.",
    ),
    (
        "update_endpoint",
        {"EndpointName": "lives", "EndpointConfigName": "plain"},
        VALIDATION,
        400,
        f'Cannot update endpoint with the currently in use endpoint configuration "{ARN}endpoint-config/plain".',
    ),
    # the model's own constraints, which botocore's client doesn't check
    *(
        (
            operation,
            {name: BAD_NAME} | more,
            VALIDATION,
            400,
            f"1 validation error detected: Value '-' at '{name[0].lower()}{name[1:]}' failed to satisfy constraint: "
            "Member must satisfy regular expression pattern: ",
        )
        for operation, name, more in (
            ("create_model", "ModelName", {"PrimaryContainer": {"Image": "i"}, "ExecutionRoleArn": ROLE}),
            ("describe_model", "ModelName", {}),
            ("delete_model", "ModelName", {}),
            ("create_endpoint_config", "EndpointConfigName", {"ProductionVariants": [variant()]}),
            ("describe_endpoint_config", "EndpointConfigName", {}),
            ("delete_endpoint_config", "EndpointConfigName", {}),
            ("create_endpoint", "EndpointName", {"EndpointConfigName": "plain"}),
            ("describe_endpoint", "EndpointName", {}),
            ("delete_endpoint", "EndpointName", {}),
            ("update_endpoint", "EndpointName", {"EndpointConfigName": "plain"}),
        )
    ),
    *(
        (
            f"list_{kind}",
            {"SortBy": "Taste"},
            VALIDATION,
            400,
            "1 validation error detected: Value 'Taste' at 'sortBy' failed to satisfy constraint: "
            "Member must satisfy enum value set: [",
        )
        for kind in ("models", "endpoint_configs", "endpoints")
    ),
    *(
        (f"list_{kind}", {"NextToken": "stale"}, VALIDATION, 400, "NextToken is not one that this operation gave")
        for kind in ("models", "endpoint_configs", "endpoints")
    ),
    (
        "list_models",
        {"MaxResults": 101},
        VALIDATION,
        400,
        "1 validation error detected: Value '101' at 'maxResults' failed to satisfy constraint: "
        "Member must have value less than or equal to 100",
    ),
    (
        "describe_endpoint",
        {},
        VALIDATION,
        400,
        "1 validation error detected: Value null at 'endpointName' failed to satisfy constraint: "
        "Member must not be null",
    ),
    # features that the local endpoint lacks
    (
        "create_model",
        {"ModelName": "x", "PrimaryContainer": {"Image": "i", "Environment": {"LD_PRELOAD": "x"}}},
        VALIDATION,
        400,
        'Environment sets "LD_PRELOAD", which the local endpoint refuses',
    ),
    ("list_training_jobs", {}, "UnknownOperationException", 400, "ListTrainingJobs is not implemented"),
    (
        "invoke_endpoint_with_response_stream",
        {"EndpointName": "sync", "Body": b""},
        "UnknownOperationException",
        400,
        "InvokeEndpointWithResponseStream is not implemented",
    ),
    # invocations
    *(
        (operation, {"EndpointName": "no", "Body": b"x"}, "ValidationError", 400, "Endpoint no of account 000000000000")
        for operation in ("invoke_endpoint", "invoke_endpoint_async")
    ),
    ("invoke_endpoint", {"EndpointName": "lives", "Body": b"x"}, "ValidationError", 400, "Endpoint lives is config"),
    ("invoke_endpoint_async", {"EndpointName": "sync", "Body": b"x"}, "ValidationError", 400, "Endpoint sync is not"),
    ("invoke_endpoint_async", {"EndpointName": "lives"}, "ValidationError", 400, "Exactly one of InputLocation and"),
    (
        "invoke_endpoint_async",
        {"EndpointName": "lives", "Body": b"x" * 128_001},
        "ValidationError",
        400,
        "1 validation error detected: Value at 'body' failed to satisfy constraint: "
        "Member must have length less than or equal to 128000",
    ),
    (
        "invoke_endpoint_async",
        {"EndpointName": "lives", "Body": b"x", "InvocationTimeoutSeconds": 3601, "RequestTTLSeconds": 59},
        "ValidationError",
        400,
        "2 validation errors detected: Value '59' at 'requestTTLSeconds' failed to satisfy constraint: "
        "Member must have value greater than or equal to 60; Value '3601'",
    ),
    (
        "invoke_endpoint",
        {"EndpointName": "sync", "Body": b"x", "CustomAttributes": "do=status:418"},
        "ModelError",
        424,
        'Received client error (418) from primary with message "the container says why: x". See https://',
    ),
    (
        "invoke_endpoint",
        {"EndpointName": "sync", "Body": b"x", "CustomAttributes": "do=status:503"},
        "ModelError",
        424,
        'Received server error (503) from primary with message "',
    ),
    (
        "invoke_endpoint",
        {"EndpointName": "sync", "Body": b"x", "CustomAttributes": "do=hang-up"},
        "ModelError",
        424,
        "Received server error (0) from primary with message",
    ),
    (
        "invoke_endpoint",
        {"EndpointName": "sync", "Body": b"x", "TargetModel": "m.tar.gz"},
        "ValidationError",
        400,
        "TargetModel is not supported by the local endpoint",
    ),
]


@pytest.mark.parametrize(
    ("operation", "parameters", "code", "status", "message"),
    REFUSED,
    ids=[f"{row[0]}-{row[4][:40]}" for row in REFUSED],
)
def test_error_has_aws_form(
    world: World, operation: str, parameters: dict[str, Any], code: str, status: int, message: str
) -> None:
    before = world.witness.refused.total()
    with pytest.raises(ClientError) as caught:
        getattr(world.careless[service_of(operation)], operation)(**parameters)
    answer = caught.value.response
    assert (answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"]) == (code, status)
    assert answer["Error"]["Message"].startswith(message)
    assert world.witness.refused.total() == before + 1


def test_modelled_error_raises_client_exception(world: World) -> None:
    with pytest.raises(world.runtime.exceptions.ModelError) as caught:
        world.runtime.invoke_endpoint(EndpointName="sync", Body=b"why", CustomAttributes="do=status:400")
    assert caught.value.response["OriginalStatusCode"] == 400
    assert caught.value.response["OriginalMessage"] == "the container says why: why"
    with pytest.raises(world.runtime.exceptions.ValidationError):
        world.runtime.invoke_endpoint_async(EndpointName="no", Body=b"x")


def test_tables_have_every_implemented_operation(world: World) -> None:
    ours = {operation for operation, *_ in ANSWERED} | {"delete_endpoint"}  # by the waiters' tests
    assert len(ours) == 19
    assert ours <= {operation for operation, *_ in REFUSED}


def test_every_missing_operation_is_refused(world: World) -> None:
    names = set(world.sagemaker.meta.service_model.operation_names)
    ours = {"".join(part.title() for part in operation.split("_")) for operation, *_ in ANSWERED} | {"DeleteEndpoint"}
    headers = {"content-type": "application/x-amz-json-1.1", "authorization": f"AWS4-HMAC-SHA256 {SCOPE}"}
    with httpx.Client(base_url=world.up.url, trust_env=False) as http:
        for name in sorted(names - ours):
            answer = http.post("/", headers=headers | {"x-amz-target": f"SageMaker.{name}"}, content=b"{}")
            assert answer.status_code == 400, name
            assert answer.json()["__type"] in ("UnknownOperationException", VALIDATION), name


SCOPE = "Credential=test/20300101/us-east-1/sagemaker/aws4_request, SignedHeaders=host, Signature=0"


def test_logs_contain_no_bodies(world: World) -> None:
    world.runtime.invoke_endpoint_async(EndpointName="lives", Body=b"a secret of the caller's")
    world.runtime.invoke_endpoint(EndpointName="sync", Body=b"a secret of the caller's")["Body"].read()
    assert "a secret" not in world.up.log()
