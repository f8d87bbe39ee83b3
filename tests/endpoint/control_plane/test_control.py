from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, WaiterError

from endpoint.control_plane.environment_rules import HIJACKING_NAMES, MAX_BYTES, rejection_reason, would_hijack
from testing.endpoint.control_server import ControlServer

ARN = "arn:aws:sagemaker:us-east-1:000000000000"
ROLE = "arn:aws:iam::000000000000:role/longhaul"
VARIANT = {"VariantName": "AllTraffic", "ModelName": "model", "InitialInstanceCount": 1, "InstanceType": "ml.g5.xlarge"}
ASYNC = {
    "ClientConfig": {"MaxConcurrentInvocationsPerInstance": 4},
    "OutputConfig": {
        "KmsKeyId": "alias/key",
        "S3OutputPath": "s3://bucket/out",
        "S3FailurePath": "s3://bucket/failed",
        "NotificationConfig": {
            "SuccessTopic": "arn:aws:sns:us-east-1:000000000000:good",
            "ErrorTopic": "arn:aws:sns:us-east-1:000000000000:bad",
            "IncludeInferenceResponseIn": ["SUCCESS_NOTIFICATION_TOPIC", "ERROR_NOTIFICATION_TOPIC"],
        },
    },
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ControlServer]:
    made = ControlServer(tmp_path)
    yield made
    made.close()


@pytest.fixture
def sagemaker(server: ControlServer) -> Any:
    return server.sagemaker


def create_model(sagemaker: Any, name: str = "model", **changes: Any) -> dict[str, Any]:
    parameters = {"ExecutionRoleArn": ROLE, "PrimaryContainer": {"Image": "longhaul:1"}} | changes
    answer: dict[str, Any] = sagemaker.create_model(ModelName=name, **parameters)
    return answer


def create_config(sagemaker: Any, name: str = "config", variant: Any = None, **changes: Any) -> dict[str, Any]:
    parameters = {"ProductionVariants": [VARIANT | (variant or {})], "AsyncInferenceConfig": ASYNC} | changes
    answer: dict[str, Any] = sagemaker.create_endpoint_config(EndpointConfigName=name, **parameters)
    return answer


def create_endpoint(sagemaker: Any, name: str = "endpoint", **changes: Any) -> None:
    """Create an endpoint with its model and config."""
    create_model(sagemaker)
    create_config(sagemaker)
    sagemaker.create_endpoint(EndpointName=name, **({"EndpointConfigName": "config"} | changes))
    in_service(sagemaker, name)


def in_service(sagemaker: Any, name: str = "endpoint") -> None:
    waiter = sagemaker.get_waiter("endpoint_in_service")
    waiter.wait(EndpointName=name, WaiterConfig={"Delay": 0.01, "MaxAttempts": 1000})


def refusal(call: Callable[..., Any], **parameters: Any) -> str:
    with pytest.raises(ClientError) as refused:
        call(**parameters)
    assert refused.value.response["Error"]["Code"] == "ValidationException"
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    return str(refused.value.response["Error"]["Message"])


def without_meta(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name != "ResponseMetadata"}


# Models


def test_model_is_described_as_created(sagemaker: Any) -> None:
    container = {
        "Image": "longhaul:1",
        "ContainerHostname": "primary",
        "Environment": {"LONGHAUL_MODEL": "/opt/ml/model", "PYTHONUNBUFFERED": "1"},
        "ModelDataSource": {
            "S3DataSource": {"S3Uri": "s3://bucket/model/", "S3DataType": "S3Prefix", "CompressionType": "None"}
        },
    }
    vpc = {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]}
    created = create_model(sagemaker, PrimaryContainer=container, VpcConfig=vpc, EnableNetworkIsolation=True)
    assert created["ModelArn"] == f"{ARN}:model/model"
    described = without_meta(sagemaker.describe_model(ModelName="model"))
    assert abs((datetime.now(UTC) - described.pop("CreationTime")).total_seconds()) < 60
    assert described == {
        "ModelName": "model",
        "ModelArn": f"{ARN}:model/model",
        "ExecutionRoleArn": ROLE,
        "PrimaryContainer": container,
        "VpcConfig": vpc,
        "EnableNetworkIsolation": True,
    }


def test_model_may_have_one_listed_container(sagemaker: Any) -> None:
    sagemaker.create_model(ModelName="model", Containers=[{"Image": "longhaul:1"}])
    assert sagemaker.describe_model(ModelName="model")["Containers"] == [{"Image": "longhaul:1"}]


def test_names_differing_in_case_share_arn(sagemaker: Any) -> None:
    assert create_model(sagemaker, "Model")["ModelArn"] == f"{ARN}:model/model"
    message = refusal(create_model, sagemaker=sagemaker, name="model")
    assert message == f'Cannot create already existing model "{ARN}:model/model".'
    assert sagemaker.describe_model(ModelName="Model")["ModelName"] == "Model"


@pytest.mark.parametrize(
    ("region", "partition"), [("eu-west-1", "aws"), ("cn-north-1", "aws-cn"), ("us-gov-west-1", "aws-us-gov")]
)
def test_arns_have_configured_region_and_account(tmp_path: Path, region: str, partition: str) -> None:
    server = ControlServer(tmp_path, region=region, account="123456789012")
    try:
        arn = create_model(server.sagemaker)["ModelArn"]
        assert arn == f"arn:{partition}:sagemaker:{region}:123456789012:model/model"
    finally:
        server.close()


S3_SOURCE = {"S3Uri": "s3://b/p/", "S3DataType": "S3Prefix", "CompressionType": "None"}


@pytest.mark.parametrize(
    ("container", "named"),
    [
        ({"Image": None}, "Image"),
        ({"Mode": "MultiModel"}, "MultiModel"),
        ({"MultiModelConfig": {}}, "MultiModel"),
        ({"ModelPackageName": "package"}, "ModelPackageName"),
        ({"AdditionalModelDataSources": [{"ChannelName": "c", "S3DataSource": S3_SOURCE}]}, "AdditionalModelData"),
        ({"ModelDataUrl": "s3://b/m.tar.gz", "ModelDataSource": {"S3DataSource": S3_SOURCE}}, "ModelDataUrl"),
        ({"ModelDataSource": {"S3DataSource": S3_SOURCE | {"S3Uri": "s3://b/p"}}}, "forward slash"),
        ({"ModelDataSource": {"S3DataSource": S3_SOURCE | {"CompressionType": "Gzip"}}}, "Gzip"),
        ({"ModelDataSource": {"S3DataSource": S3_SOURCE | {"ManifestS3Uri": "s3://b/m"}}}, "ManifestS3Uri"),
        ({"ModelDataSource": {"S3DataSource": S3_SOURCE | {"ETag": "e"}}}, "ETag"),
        ({"Environment": {"LD_PRELOAD": "/tmp/x.so"}}, '"LD_PRELOAD"'),
        ({"Environment": {"A": "b\0c"}}, "NUL"),
        ({"Environment": {f"A{i}": "x" * 1000 for i in range(40)}}, "32768"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unsupported_container_is_refused_by_name(sagemaker: Any, container: dict[str, Any], named: str) -> None:
    whole = {name: value for name, value in ({"Image": "i"} | container).items() if value is not None}
    assert named in refusal(create_model, sagemaker=sagemaker, PrimaryContainer=whole)
    assert sagemaker.list_models()["Models"] == []


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({}, "PrimaryContainer"),
        ({"PrimaryContainer": {"Image": "i"}, "Containers": [{"Image": "i"}]}, "PrimaryContainer"),
        ({"Containers": [{"Image": "i"}, {"Image": "i"}]}, "Containers"),
        ({"Containers": [{"Image": "i"}], "InferenceExecutionConfig": {"Mode": "Direct"}}, "InferenceExecutionConfig"),
    ],
)
def test_model_needs_exactly_one_container(sagemaker: Any, parameters: dict[str, Any], named: str) -> None:
    assert named in refusal(sagemaker.create_model, ModelName="m", **parameters)


def test_model_constraints_are_checked_first(sagemaker: Any) -> None:
    message = refusal(create_model, sagemaker=sagemaker, name="bad_name!")
    assert message.startswith("1 validation error detected: Value 'bad_name!' at 'modelName' failed to satisfy")


# The environment


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "HOME", "LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP"),
        *("BASH_ENV", "ENV", "IFS", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"),
    ],
)
def test_variable_that_hijacks_host_is_refused(name: str) -> None:
    assert would_hijack(name)
    reason = rejection_reason({name: "secret"})
    assert reason and f'"{name}"' in reason and "secret" not in reason


@pytest.mark.parametrize(
    "name", ["LONGHAUL_MODEL", "HF_TOKEN", "PYTHONUNBUFFERED", "AWS_REGION", "path", "OMP_NUM_THREADS"]
)
def test_other_variables_are_allowed(name: str) -> None:
    assert rejection_reason({name: "x"}) is None


def test_real_container_may_have_any_variable() -> None:
    assert rejection_reason({"PATH": "/opt/bin", "LD_PRELOAD": "x.so"}, is_process=False) is None
    assert rejection_reason({"A": "a\0b"}, is_process=False) is not None


def test_environment_is_limited_to_32_kib() -> None:
    assert rejection_reason({"A": "x" * (MAX_BYTES - 1)}) is None
    assert rejection_reason({"A": "x" * MAX_BYTES}) is not None
    assert rejection_reason({"A": "ä" * (MAX_BYTES // 2)}) is not None  # bytes count, not characters


def test_hijacking_names_fit_model_constraints() -> None:
    assert all(re.fullmatch("[a-zA-Z_][a-zA-Z0-9_]*", name) for name in HIJACKING_NAMES)


# Endpoint configs


def test_limits_refuse_types_without_known_memory(tmp_path: Path) -> None:
    server = ControlServer(tmp_path, runner="docker", limits=True)
    try:
        create_model(server.sagemaker)
        create_config(server.sagemaker, "known", {"InstanceType": "ml.g5.xlarge"})
        message = refusal(create_config, sagemaker=server.sagemaker, variant={"InstanceType": "ml.trn1.2xlarge"})
        assert "InstanceType ml.trn1.2xlarge is not supported by the local endpoint with --limits" in message
    finally:
        server.close()


def test_config_is_described_as_created(sagemaker: Any) -> None:
    create_model(sagemaker)
    variant = {
        "ContainerStartupHealthCheckTimeoutInSeconds": 600,
        "ModelDataDownloadTimeoutInSeconds": 900,
        "EnableSSMAccess": False,
        "InferenceAmiVersion": "al2-ami-sagemaker-inference-gpu-3-1",
        "RoutingConfig": {"RoutingStrategy": "RANDOM"},
    }
    created = create_config(sagemaker, variant=variant, KmsKeyId="key", MetricsConfig={"EnableEnhancedMetrics": True})
    assert created["EndpointConfigArn"] == f"{ARN}:endpoint-config/config"
    described = without_meta(sagemaker.describe_endpoint_config(EndpointConfigName="config"))
    assert isinstance(described.pop("CreationTime"), datetime)
    assert described == {
        "EndpointConfigName": "config",
        "EndpointConfigArn": f"{ARN}:endpoint-config/config",
        "ProductionVariants": [VARIANT | variant | {"InitialVariantWeight": 1.0}],
        "AsyncInferenceConfig": ASYNC,
        "KmsKeyId": "key",
        "MetricsConfig": {"EnableEnhancedMetrics": True},
        "EnableNetworkIsolation": False,
    }


EXPLAINER = {"ShapConfig": {"ShapBaselineConfig": {}}}
CAPTURE = {"InitialSamplingPercentage": 1, "DestinationS3Uri": "s3://b", "CaptureOptions": [{"CaptureMode": "Input"}]}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"ProductionVariants": [VARIANT, VARIANT | {"VariantName": "b"}]}, "Several ProductionVariants"),
        ({"ShadowProductionVariants": [VARIANT | {"VariantName": "b"}]}, "ShadowProductionVariants"),
        ({"DataCaptureConfig": CAPTURE}, "DataCaptureConfig"),
        (
            {"ExplainerConfig": {"ClarifyExplainerConfig": {"ShapConfig": {"ShapBaselineConfig": {}}}}},
            "ExplainerConfig",
        ),
        ({"EnableNetworkIsolation": True}, "EnableNetworkIsolation"),
        ({"AsyncInferenceConfig": {"OutputConfig": {}}}, "S3OutputPath"),
        ({"variant": {"ServerlessConfig": {"MemorySizeInMB": 1024, "MaxConcurrency": 1}}}, "ServerlessConfig"),
        ({"variant": {"ManagedInstanceScaling": {"Status": "ENABLED"}}}, "ManagedInstanceScaling is only supported"),
        ({"variant": {"AcceleratorType": "ml.eia1.medium"}}, "AcceleratorType"),
        ({"variant": {"CoreDumpConfig": {"DestinationS3Uri": "s3://b"}}}, "CoreDumpConfig"),
        ({"variant": {"InstancePools": [{"InstanceType": "ml.g5.xlarge", "Priority": 1}]}}, "InstancePools"),
        ({"variant": {"ModelName": "other"}}, f'Could not find model "{ARN}:model/other".'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unsupported_config_is_refused_by_name(sagemaker: Any, changes: dict[str, Any], named: str) -> None:
    create_model(sagemaker)
    assert named in refusal(create_config, sagemaker=sagemaker, **changes)
    assert sagemaker.list_endpoint_configs()["EndpointConfigs"] == []


@pytest.mark.parametrize("missing", ["ModelName", "InstanceType", "InitialInstanceCount"])
def test_variant_needs_model_type_and_count(sagemaker: Any, missing: str) -> None:
    create_model(sagemaker)
    variant = {name: value for name, value in VARIANT.items() if name != missing}
    message = refusal(create_config, sagemaker=sagemaker, ProductionVariants=[variant])
    assert missing in message


def test_disabled_data_capture_is_stored(sagemaker: Any) -> None:
    create_model(sagemaker)
    create_config(sagemaker, DataCaptureConfig=CAPTURE | {"EnableCapture": False})
    described = sagemaker.describe_endpoint_config(EndpointConfigName="config")
    assert described["DataCaptureConfig"]["EnableCapture"] is False


def test_instance_pools_replace_instance_type(sagemaker: Any) -> None:
    create_model(sagemaker)
    pools = [{"InstanceType": "ml.g5.xlarge", "Priority": 2}, {"InstanceType": "ml.g6.xlarge", "Priority": 1}]
    variant = {name: value for name, value in VARIANT.items() if name != "InstanceType"} | {"InstancePools": pools}
    create_config(sagemaker, ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName="endpoint", EndpointConfigName="config")
    in_service(sagemaker)
    (summary,) = sagemaker.describe_endpoint(EndpointName="endpoint")["ProductionVariants"]
    assert summary["InstancePools"] == [{"InstanceType": "ml.g6.xlarge", "CurrentInstanceCount": 1}]


PREFIX_AWARE = {"RoutingStrategy": "PREFIX_AWARE"}
PREFIX = {"PrefixLength": 1024, "ConcurrencyThreshold": 4}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"variant": {"RoutingConfig": PREFIX_AWARE}}, "PrefixAwareRoutingConfig.PrefixLength must be specified"),
        (
            {"variant": {"RoutingConfig": PREFIX_AWARE | {"PrefixAwareRoutingConfig": {"PrefixLength": 1024}}}},
            "PrefixAwareRoutingConfig.ConcurrencyThreshold must be specified",
        ),
        (
            {"variant": {"RoutingConfig": {"RoutingStrategy": "RANDOM", "PrefixAwareRoutingConfig": PREFIX}}},
            "PrefixAwareRoutingConfig may only be specified when RoutingStrategy is PREFIX_AWARE.",
        ),
        ({"MetricsConfig": {"MetricPublishFrequencyInSeconds": 45}}, "Invalid MetricPublishFrequencyInSeconds 45."),
        ({"MetricsConfig": {"MetricPublishFrequencyInSeconds": 0}}, "Invalid MetricPublishFrequencyInSeconds 0."),
        ({"variant": {"VolumeSizeInGB": 100}}, "not allowed for the selected Instance type ml.g5.xlarge."),
        (
            {"variant": {"VolumeSizeInGB": 100, "InstanceType": "ml.g4dn.xlarge"}},
            "not allowed for the selected Instance type ml.g4dn.xlarge.",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_config_that_aws_refuses_is_refused(sagemaker: Any, changes: dict[str, Any], named: str) -> None:
    create_model(sagemaker)
    assert named in refusal(create_config, sagemaker=sagemaker, **changes)


@pytest.mark.parametrize("seconds", [10, 30, 60, 120, 180, 240, 300])
def test_metric_frequency_has_seven_values(sagemaker: Any, seconds: int) -> None:
    frequency = {"MetricPublishFrequencyInSeconds": seconds}
    scraped = {"MetricsEndpoints": [{"MetricsEndpointPath": "/metrics"} | frequency]}
    create_model(sagemaker, PrimaryContainer={"Image": "longhaul:1", "ContainerMetricsConfig": scraped})
    create_config(sagemaker, MetricsConfig=frequency)
    described = sagemaker.describe_endpoint_config(EndpointConfigName="config")
    assert described["MetricsConfig"] == frequency


def test_container_metric_frequency_is_checked(sagemaker: Any) -> None:
    scraped = {"MetricsEndpoints": [{"MetricsEndpointPath": "/metrics", "MetricPublishFrequencyInSeconds": 20}]}
    container = {"Image": "longhaul:1", "ContainerMetricsConfig": scraped}
    message = refusal(create_model, sagemaker=sagemaker, PrimaryContainer=container)
    assert message.startswith("Invalid MetricPublishFrequencyInSeconds 20. Valid values: 10, 30,")


def test_prefix_aware_routing_and_volume_are_stored(sagemaker: Any) -> None:
    variant = {
        "RoutingConfig": PREFIX_AWARE | {"PrefixAwareRoutingConfig": PREFIX},
        "VolumeSizeInGB": 100,
        "InstanceType": "ml.m5.large",
    }
    create_model(sagemaker)
    create_config(sagemaker, variant=variant)
    (described,) = sagemaker.describe_endpoint_config(EndpointConfigName="config")["ProductionVariants"]
    assert {name: described[name] for name in variant} == variant


# Endpoints: creating and describing


def test_created_endpoint_comes_into_service(server: ControlServer, sagemaker: Any) -> None:
    server.fleet.is_quick = False
    create_model(sagemaker)
    create_config(sagemaker, variant={"InitialInstanceCount": 2})
    created = sagemaker.create_endpoint(EndpointName="Endpoint", EndpointConfigName="config")
    assert created["EndpointArn"] == f"{ARN}:endpoint/endpoint"
    assert (server.fleet.wakes, server.notified) == (1, ["Endpoint"])
    creating = sagemaker.describe_endpoint(EndpointName="Endpoint")
    assert creating["EndpointStatus"] == "Creating"
    (variant,) = creating["ProductionVariants"]
    assert (variant["CurrentInstanceCount"], variant["DesiredInstanceCount"]) == (0, 2)
    assert [status["Status"] for status in variant["VariantStatus"]] == ["Creating"]
    assert creating["PendingDeploymentSummary"]["EndpointConfigName"] == "config"
    server.run(server.fleet.settle())
    in_service(sagemaker, "Endpoint")
    described = without_meta(sagemaker.describe_endpoint(EndpointName="Endpoint"))
    (variant,) = described.pop("ProductionVariants")
    created_at, modified_at = described.pop("CreationTime"), described.pop("LastModifiedTime")
    assert created_at <= modified_at
    assert described == {
        "EndpointName": "Endpoint",
        "EndpointArn": f"{ARN}:endpoint/endpoint",
        "EndpointConfigName": "config",
        "EndpointStatus": "InService",
        "AsyncInferenceConfig": ASYNC,
    }
    assert variant == {
        "VariantName": "AllTraffic",
        "DeployedImages": [
            {"SpecifiedImage": "longhaul:1", "ResolvedImage": "longhaul:1", "ResolutionTime": created_at}
        ],
        "CurrentWeight": 1.0,
        "DesiredWeight": 1.0,
        "CurrentInstanceCount": 2,
        "DesiredInstanceCount": 2,
    }


def test_failed_endpoint_can_only_be_deleted(server: ControlServer, sagemaker: Any) -> None:
    create_endpoint(sagemaker)
    reason = "The primary container for production variant AllTraffic did not pass the ping health check."
    server.run(server.catalog.change_endpoint("endpoint", status="Failed", failure_reason=reason))
    assert sagemaker.describe_endpoint(EndpointName="endpoint")["FailureReason"] == reason
    with pytest.raises(WaiterError, match="Failed"):
        in_service(sagemaker)
    create_config(sagemaker, "other")
    message = refusal(sagemaker.update_endpoint, EndpointName="endpoint", EndpointConfigName="other")
    assert message == f'Cannot update failed endpoint "{ARN}:endpoint/endpoint".'
    sagemaker.delete_endpoint(EndpointName="endpoint")
    deleted(sagemaker)


def deleted(sagemaker: Any, name: str = "endpoint") -> None:
    waiter = sagemaker.get_waiter("endpoint_deleted")
    waiter.wait(EndpointName=name, WaiterConfig={"Delay": 0.01, "MaxAttempts": 1000})


def test_endpoint_needs_config_and_model(sagemaker: Any) -> None:
    parameters = {"EndpointName": "endpoint", "EndpointConfigName": "config"}
    message = refusal(sagemaker.create_endpoint, **parameters)
    assert message == f'Could not find endpoint configuration "{ARN}:endpoint-config/config".'
    create_model(sagemaker)
    create_config(sagemaker)
    sagemaker.delete_model(ModelName="model")
    assert refusal(sagemaker.create_endpoint, **parameters) == f'Could not find model "{ARN}:model/model".'


def test_endpoint_may_lack_async_config(sagemaker: Any) -> None:
    create_model(sagemaker)
    sagemaker.create_endpoint_config(EndpointConfigName="config", ProductionVariants=[VARIANT])
    sagemaker.create_endpoint(EndpointName="endpoint", EndpointConfigName="config")
    in_service(sagemaker)
    assert "AsyncInferenceConfig" not in sagemaker.describe_endpoint(EndpointName="endpoint")


def test_existing_resource_is_not_created_again(sagemaker: Any) -> None:
    create_endpoint(sagemaker)
    exists = "Cannot create already existing"
    assert refusal(create_model, sagemaker=sagemaker) == f'{exists} model "{ARN}:model/model".'
    message = refusal(create_config, sagemaker=sagemaker)
    assert message == f'{exists} endpoint configuration "{ARN}:endpoint-config/config".'
    message = refusal(sagemaker.create_endpoint, EndpointName="endpoint", EndpointConfigName="config")
    assert message == f'{exists} endpoint "{ARN}:endpoint/endpoint".'


@pytest.mark.parametrize(
    ("operation", "parameters", "message"),
    [
        ("describe_model", {"ModelName": "x"}, f'Could not find model "{ARN}:model/x".'),
        ("delete_model", {"ModelName": "x"}, f'Could not find model "{ARN}:model/x".'),
        (
            "describe_endpoint_config",
            {"EndpointConfigName": "x"},
            f'Could not find endpoint configuration "{ARN}:endpoint-config/x".',
        ),
        (
            "delete_endpoint_config",
            {"EndpointConfigName": "x"},
            f'Could not find endpoint configuration "{ARN}:endpoint-config/x".',
        ),
        ("describe_endpoint", {"EndpointName": "x"}, f'Could not find endpoint "{ARN}:endpoint/x".'),
        ("delete_endpoint", {"EndpointName": "x"}, f'Could not find endpoint "{ARN}:endpoint/x".'),
        (
            "update_endpoint",
            {"EndpointName": "x", "EndpointConfigName": "c"},
            f'Could not find endpoint "{ARN}:endpoint/x".',
        ),
        (
            "update_endpoint_weights_and_capacities",
            {"EndpointName": "x", "DesiredWeightsAndCapacities": [{"VariantName": "v"}]},
            f'Could not find endpoint "{ARN}:endpoint/x".',
        ),
        ("add_tags", {"ResourceArn": f"{ARN}:endpoint/x", "Tags": []}, f'Could not find endpoint "{ARN}:endpoint/x".'),
        ("list_tags", {"ResourceArn": f"{ARN}:model/x"}, f'Could not find model "{ARN}:model/x".'),
        ("delete_tags", {"ResourceArn": f"{ARN}:app/x", "TagKeys": ["a"]}, f'Could not find resource "{ARN}:app/x".'),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_missing_resource_is_named_by_arn(
    sagemaker: Any, operation: str, parameters: dict[str, Any], message: str
) -> None:
    assert refusal(getattr(sagemaker, operation), **parameters) == message


def test_missing_operation_is_not_retried(sagemaker: Any) -> None:
    with pytest.raises(ClientError) as refused:
        sagemaker.describe_training_job(TrainingJobName="job")
    assert refused.value.response["Error"]["Code"] == "UnknownOperationException"
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    assert "DescribeTrainingJob is not implemented" in refused.value.response["Error"]["Message"]


def test_internal_error_is_internal_failure(
    server: ControlServer, sagemaker: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server.run(server.database.write(lambda db: db.execute("DROP TABLE resources") and None))
    with pytest.raises(ClientError) as failed:
        sagemaker.list_models()
    assert failed.value.response["Error"]["Code"] == "InternalFailure"
    assert failed.value.response["ResponseMetadata"]["HTTPStatusCode"] == 500
    assert "no such table" not in failed.value.response["Error"]["Message"]
    assert "no such table" in caplog.text


# Endpoints: updating and deleting


def test_update_describes_target_until_it_serves(server: ControlServer, sagemaker: Any) -> None:
    create_endpoint(sagemaker)
    create_model(sagemaker, "model-2", PrimaryContainer={"Image": "longhaul:2"})
    create_config(sagemaker, "config-2", {"ModelName": "model-2", "InitialInstanceCount": 3})
    server.fleet.is_quick = False
    updated = sagemaker.update_endpoint(EndpointName="endpoint", EndpointConfigName="config-2")
    assert updated["EndpointArn"] == f"{ARN}:endpoint/endpoint"
    updating = sagemaker.describe_endpoint(EndpointName="endpoint")
    assert (updating["EndpointStatus"], updating["EndpointConfigName"]) == ("Updating", "config")
    assert updating["ProductionVariants"][0]["DeployedImages"][0]["SpecifiedImage"] == "longhaul:1"
    pending = updating["PendingDeploymentSummary"]
    assert pending["EndpointConfigName"] == "config-2"
    assert pending["ProductionVariants"][0]["DeployedImages"][0]["SpecifiedImage"] == "longhaul:2"
    assert pending["ProductionVariants"][0]["DesiredInstanceCount"] == 3
    server.run(server.fleet.settle())
    in_service(sagemaker)
    described = sagemaker.describe_endpoint(EndpointName="endpoint")
    assert described["EndpointConfigName"] == "config-2"
    assert "PendingDeploymentSummary" not in described
    assert described["ProductionVariants"][0]["CurrentInstanceCount"] == 3
    assert server.notified == ["endpoint", "endpoint"]


@pytest.mark.parametrize("status", ["Creating", "Updating", "RollingBack", "Deleting"])
def test_endpoint_in_progress_cannot_be_changed(server: ControlServer, sagemaker: Any, status: str) -> None:
    create_endpoint(sagemaker)
    create_config(sagemaker, "config-2")
    server.fleet.is_quick = False
    server.run(server.catalog.change_endpoint("endpoint", status=status))
    message = f'Cannot update in-progress endpoint "{ARN}:endpoint/endpoint".'
    assert refusal(sagemaker.update_endpoint, EndpointName="endpoint", EndpointConfigName="config-2") == message
    assert refusal(sagemaker.delete_endpoint, EndpointName="endpoint") == message
    wanted = [{"VariantName": "AllTraffic", "DesiredInstanceCount": 2}]
    call = sagemaker.update_endpoint_weights_and_capacities
    assert refusal(call, EndpointName="endpoint", DesiredWeightsAndCapacities=wanted) == message


def test_one_of_concurrent_updates_is_accepted(server: ControlServer, sagemaker: Any) -> None:
    create_endpoint(sagemaker)
    create_config(sagemaker, "config-2")
    server.fleet.is_quick = False
    outcomes: list[str] = []

    def update() -> None:
        try:
            sagemaker.update_endpoint(EndpointName="endpoint", EndpointConfigName="config-2")
            outcomes.append("taken")
        except ClientError as error:
            outcomes.append(error.response["Error"]["Message"])

    threads = [threading.Thread(target=update) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("taken") == 1
    assert sum("in-progress" in outcome for outcome in outcomes) == 7


def test_update_to_current_config_is_refused(sagemaker: Any) -> None:
    create_endpoint(sagemaker)
    message = refusal(sagemaker.update_endpoint, EndpointName="endpoint", EndpointConfigName="config")
    assert message.startswith("Cannot update endpoint with the currently in use endpoint configuration")


def test_update_keeps_endpoint_asynchronous_or_not(sagemaker: Any) -> None:
    create_endpoint(sagemaker)
    sagemaker.create_endpoint_config(EndpointConfigName="other", ProductionVariants=[VARIANT])
    message = refusal(sagemaker.update_endpoint, EndpointName="endpoint", EndpointConfigName="other")
    assert "AsyncInferenceConfig" in message


def scale(sagemaker: Any, **wanted: Any) -> None:
    sagemaker.update_endpoint_weights_and_capacities(
        EndpointName="endpoint", DesiredWeightsAndCapacities=[{"VariantName": "AllTraffic"} | wanted]
    )
    in_service(sagemaker)


def variant_of(sagemaker: Any) -> dict[str, Any]:
    variant: dict[str, Any] = sagemaker.describe_endpoint(EndpointName="endpoint")["ProductionVariants"][0]
    return variant


def test_async_endpoint_scales_to_zero_and_back(server: ControlServer, sagemaker: Any) -> None:
    create_endpoint(sagemaker)
    scale(sagemaker, DesiredInstanceCount=0)
    assert (variant_of(sagemaker)["CurrentInstanceCount"], variant_of(sagemaker)["DesiredInstanceCount"]) == (0, 0)
    scale(sagemaker, DesiredInstanceCount=2)
    assert variant_of(sagemaker)["CurrentInstanceCount"] == 2
    assert server.notified == ["endpoint"] * 3


def test_weight_is_kept_and_described(sagemaker: Any) -> None:
    create_endpoint(sagemaker)
    scale(sagemaker, DesiredWeight=0.5)
    variant = variant_of(sagemaker)
    assert (variant["DesiredWeight"], variant["DesiredInstanceCount"]) == (0.5, 1)


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        ([{"VariantName": "other", "DesiredInstanceCount": 1}], '"other"'),
        ([{"VariantName": "AllTraffic"}, {"VariantName": "AllTraffic"}], "more than once"),
        ([{"VariantName": "AllTraffic", "ServerlessUpdateConfig": {}}], "ServerlessUpdateConfig"),
    ],
)
def test_meaningless_capacities_are_refused(
    server: ControlServer, sagemaker: Any, wanted: list[dict[str, Any]], named: str
) -> None:
    create_endpoint(sagemaker)
    call = sagemaker.update_endpoint_weights_and_capacities
    assert named in refusal(call, EndpointName="endpoint", DesiredWeightsAndCapacities=wanted)
    assert sagemaker.describe_endpoint(EndpointName="endpoint")["EndpointStatus"] == "InService"


def test_real_time_endpoint_keeps_an_instance(sagemaker: Any) -> None:
    create_model(sagemaker)
    sagemaker.create_endpoint_config(EndpointConfigName="config", ProductionVariants=[VARIANT])
    sagemaker.create_endpoint(EndpointName="endpoint", EndpointConfigName="config")
    in_service(sagemaker)
    wanted = [{"VariantName": "AllTraffic", "DesiredInstanceCount": 0}]
    call = sagemaker.update_endpoint_weights_and_capacities
    assert "asynchronous" in refusal(call, EndpointName="endpoint", DesiredWeightsAndCapacities=wanted)


@pytest.mark.parametrize(
    ("retain", "count", "weight"),
    [
        ({}, 1, 1.0),
        ({"RetainAllVariantProperties": True}, 5, 0.5),
        (
            {
                "RetainAllVariantProperties": True,
                "ExcludeRetainedVariantProperties": [{"VariantPropertyType": "DesiredInstanceCount"}],
            },
            1,
            0.5,
        ),
    ],
)
def test_update_retains_variant_properties_on_request(
    sagemaker: Any, retain: dict[str, Any], count: int, weight: float
) -> None:
    create_endpoint(sagemaker)
    scale(sagemaker, DesiredInstanceCount=5, DesiredWeight=0.5)
    create_config(sagemaker, "config-2")
    sagemaker.update_endpoint(EndpointName="endpoint", EndpointConfigName="config-2", **retain)
    in_service(sagemaker)
    variant = variant_of(sagemaker)
    assert (variant["DesiredInstanceCount"], variant["DesiredWeight"]) == (count, weight)


AT_ONCE = {
    "BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 0}}
}


def blue_green(routing: dict[str, Any] | None = None, **policy: Any) -> dict[str, Any]:
    routed = {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 0} | (routing or {})
    return {"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routed} | policy}


@pytest.mark.parametrize(
    ("deployment", "named"),
    [
        (blue_green({"Type": "CANARY"}), "CANARY"),
        (blue_green({"Type": "LINEAR"}), "LINEAR"),
        (blue_green({"WaitIntervalInSeconds": 1}), "WaitIntervalInSeconds"),
        (blue_green(TerminationWaitInSeconds=1), "TerminationWaitInSeconds"),
        (blue_green(MaximumExecutionTimeoutInSeconds=600), "MaximumExecutionTimeoutInSeconds"),
        ({"AutoRollbackConfiguration": {"Alarms": [{"AlarmName": "a"}]}}, "AutoRollbackConfiguration"),
        (
            {
                "RollingUpdatePolicy": {
                    "MaximumBatchSize": {"Type": "INSTANCE_COUNT", "Value": 1},
                    "WaitIntervalInSeconds": 0,
                }
            },
            "RollingUpdatePolicy",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unsupported_deployment_is_refused_by_name(sagemaker: Any, deployment: dict[str, Any], named: str) -> None:
    create_endpoint(sagemaker)
    create_config(sagemaker, "config-2")
    names = {"EndpointName": "endpoint", "EndpointConfigName": "config-2"}
    assert named in refusal(sagemaker.update_endpoint, **names, DeploymentConfig=deployment)
    other = names | {"EndpointName": "other"}
    assert named in refusal(sagemaker.create_endpoint, **other, DeploymentConfig=deployment)


def test_deployment_config_is_retained_on_request(sagemaker: Any) -> None:
    create_endpoint(sagemaker, DeploymentConfig=AT_ONCE)
    assert sagemaker.describe_endpoint(EndpointName="endpoint")["LastDeploymentConfig"] == AT_ONCE
    create_config(sagemaker, "config-2")
    update = {"EndpointName": "endpoint", "EndpointConfigName": "config-2", "RetainDeploymentConfig": True}
    assert "Only one of" in refusal(sagemaker.update_endpoint, **update, DeploymentConfig=AT_ONCE)
    sagemaker.update_endpoint(**update)
    assert sagemaker.describe_endpoint(EndpointName="endpoint")["LastDeploymentConfig"] == AT_ONCE


def test_update_of_scaled_variant_keeps_its_type(server: ControlServer, sagemaker: Any) -> None:
    create_endpoint(sagemaker)
    server.registered = {("endpoint", "AllTraffic")}
    create_config(sagemaker, "larger", variant={"InstanceType": "ml.g5.2xlarge"})
    message = refusal(sagemaker.update_endpoint, EndpointName="endpoint", EndpointConfigName="larger")
    assert message.startswith(f'Cannot change the instance type of variant "AllTraffic" of endpoint "{ARN}:endpoint/')
    assert sagemaker.describe_endpoint(EndpointName="endpoint")["EndpointStatus"] == "InService"
    server.registered.clear()
    sagemaker.update_endpoint(EndpointName="endpoint", EndpointConfigName="larger")
    in_service(sagemaker)


def test_update_of_scaled_variant_changes_its_model(server: ControlServer, sagemaker: Any) -> None:
    create_endpoint(sagemaker)
    server.registered = {("endpoint", "AllTraffic"), ("other", "AllTraffic")}
    create_model(sagemaker, "newer")
    create_config(sagemaker, "newer", variant={"ModelName": "newer"})
    sagemaker.update_endpoint(EndpointName="endpoint", EndpointConfigName="newer")
    in_service(sagemaker)


def test_deletion_deregisters_scaled_variants(server: ControlServer, sagemaker: Any) -> None:
    create_endpoint(sagemaker)
    server.registered = {("endpoint", "AllTraffic"), ("other", "AllTraffic")}
    sagemaker.delete_endpoint(EndpointName="endpoint")
    assert server.registered == {("other", "AllTraffic")}


def test_deletion_deregisters_what_is_registered_meanwhile(server: ControlServer, sagemaker: Any) -> None:
    create_endpoint(sagemaker)
    server.registered_next = {("endpoint", "AllTraffic")}
    sagemaker.delete_endpoint(EndpointName="endpoint")
    assert server.registered == set()


def test_deletion_lasts_until_fleet_is_done(server: ControlServer, sagemaker: Any) -> None:
    create_endpoint(sagemaker)
    server.fleet.is_quick = False
    sagemaker.delete_endpoint(EndpointName="endpoint")
    assert sagemaker.describe_endpoint(EndpointName="endpoint")["EndpointStatus"] == "Deleting"
    message = refusal(sagemaker.create_endpoint, EndpointName="endpoint", EndpointConfigName="config")
    assert "Cannot create already existing endpoint" in message
    server.run(server.fleet.settle())
    deleted(sagemaker)
    assert sagemaker.list_endpoints()["Endpoints"] == []


def test_endpoint_keeps_its_model_and_config(server: ControlServer, sagemaker: Any) -> None:
    create_endpoint(sagemaker)
    sagemaker.delete_model(ModelName="model")
    sagemaker.delete_endpoint_config(EndpointConfigName="config")
    assert variant_of(sagemaker)["DeployedImages"][0]["SpecifiedImage"] == "longhaul:1"
    create_model(sagemaker, PrimaryContainer={"Image": "longhaul:2"})
    create_config(sagemaker, variant={"InitialInstanceCount": 9})
    scale(sagemaker, DesiredInstanceCount=2)
    assert variant_of(sagemaker)["DeployedImages"][0]["SpecifiedImage"] == "longhaul:1"
    endpoint = server.run(server.catalog.endpoint("endpoint"))
    deployment = server.run(server.catalog.deployment(endpoint, "config"))
    assert deployment.container["Image"] == "longhaul:1"
    assert deployment.variant["InitialInstanceCount"] == 1


# Lists


def test_lists_start_with_newest(sagemaker: Any) -> None:
    for name in ("b", "a", "c"):
        create_model(sagemaker, name)
    listed = sagemaker.list_models()["Models"]
    assert [model["ModelName"] for model in listed] == ["c", "a", "b"]
    assert listed[0].keys() == {"ModelName", "ModelArn", "CreationTime"}


@pytest.mark.parametrize(
    ("parameters", "names"),
    [
        ({"SortBy": "Name", "SortOrder": "Ascending"}, ["a-1", "a-2", "b-1"]),
        ({"SortBy": "Name"}, ["b-1", "a-2", "a-1"]),
        ({"SortBy": "CreationTime", "SortOrder": "Ascending"}, ["b-1", "a-1", "a-2"]),
        ({"NameContains": "a-"}, ["a-2", "a-1"]),
        ({"NameContains": "A-"}, []),
        ({"MaxResults": 2}, ["a-2", "a-1"]),
    ],
)
def test_lists_are_sorted_and_filtered(sagemaker: Any, parameters: dict[str, Any], names: list[str]) -> None:
    for name in ("b-1", "a-1", "a-2"):
        create_model(sagemaker, name)
    assert [model["ModelName"] for model in sagemaker.list_models(**parameters)["Models"]] == names


def test_list_filters_match_described_times(sagemaker: Any) -> None:
    create_model(sagemaker)
    created = sagemaker.describe_model(ModelName="model")["CreationTime"]
    assert len(sagemaker.list_models(CreationTimeAfter=created)["Models"]) == 1
    assert sagemaker.list_models(CreationTimeBefore=created)["Models"] == []


def test_pages_stay_consistent_while_list_changes(sagemaker: Any) -> None:
    create_model(sagemaker)
    for i in range(6):
        create_config(sagemaker, f"config-{i}")
    order = {"SortBy": "Name", "SortOrder": "Ascending", "MaxResults": 2}
    first = sagemaker.list_endpoint_configs(**order)
    sagemaker.delete_endpoint_config(EndpointConfigName="config-1")
    create_config(sagemaker, "config-0a")
    second = sagemaker.list_endpoint_configs(**order, NextToken=first["NextToken"])
    assert [config["EndpointConfigName"] for config in second["EndpointConfigs"]] == ["config-2", "config-3"]


def test_botocore_paginators_see_everything_once(sagemaker: Any) -> None:
    for i in range(25):
        create_model(sagemaker, f"m{i}")
    pages = sagemaker.get_paginator("list_models").paginate(PaginationConfig={"PageSize": 7})
    names = [model["ModelName"] for page in pages for model in page["Models"]]
    assert sorted(names) == sorted(f"m{i}" for i in range(25))
    assert len(sagemaker.list_models()["Models"]) == 10


@pytest.mark.parametrize("token", ["x", "!", "bnVsbA==", "W1tb", "ä", "W" * 8192])
def test_foreign_token_is_refused(sagemaker: Any, token: str) -> None:
    assert "NextToken" in refusal(sagemaker.list_models, NextToken=token)


def test_token_of_another_order_is_refused(sagemaker: Any) -> None:
    create_model(sagemaker, "a")
    create_model(sagemaker, "b")
    token = sagemaker.list_models(MaxResults=1)["NextToken"]
    assert "NextToken" in refusal(sagemaker.list_models, NextToken=token, SortBy="Name")


def test_endpoints_are_listed_by_status(server: ControlServer, sagemaker: Any) -> None:
    create_endpoint(sagemaker)
    server.fleet.is_quick = False
    sagemaker.create_endpoint(EndpointName="creating", EndpointConfigName="config")
    (listed,) = sagemaker.list_endpoints(StatusEquals="Creating")["Endpoints"]
    assert (listed["EndpointName"], listed["EndpointStatus"]) == ("creating", "Creating")
    by_status = sagemaker.list_endpoints(SortBy="Status", SortOrder="Ascending")["Endpoints"]
    assert [endpoint["EndpointStatus"] for endpoint in by_status] == ["Creating", "InService"]
    modified = sagemaker.describe_endpoint(EndpointName="endpoint")["LastModifiedTime"]
    assert sagemaker.list_endpoints(LastModifiedTimeBefore=modified)["Endpoints"] == []


# Tags


def test_tags_are_created_changed_and_removed(sagemaker: Any) -> None:
    arn = create_model(sagemaker, Tags=[{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}])["ModelArn"]
    added = sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "b", "Value": "3"}, {"Key": "c", "Value": ""}])
    expected = [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "3"}, {"Key": "c", "Value": ""}]
    assert added["Tags"] == expected
    assert sagemaker.list_tags(ResourceArn=arn)["Tags"] == expected
    sagemaker.delete_tags(ResourceArn=arn, TagKeys=["a", "c", "none"])
    assert sagemaker.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "b", "Value": "3"}]
    assert "Tags" not in sagemaker.describe_model(ModelName="model")


def test_tags_are_deleted_with_their_resource(sagemaker: Any) -> None:
    create_model(sagemaker, Tags=[{"Key": "a", "Value": "1"}])
    sagemaker.delete_model(ModelName="model")
    arn = create_model(sagemaker)["ModelArn"]
    assert sagemaker.list_tags(ResourceArn=arn)["Tags"] == []


def test_tag_rules_are_checked(sagemaker: Any) -> None:
    twice = [{"Key": "a", "Value": "1"}, {"Key": "a", "Value": "2"}]
    assert "unique" in refusal(create_model, sagemaker=sagemaker, Tags=twice)
    assert "aws:" in refusal(create_model, sagemaker=sagemaker, Tags=[{"Key": "aws:x", "Value": "1"}])
    arn = create_model(sagemaker, Tags=[{"Key": f"k{i}", "Value": ""} for i in range(50)])["ModelArn"]
    sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "k0", "Value": "again"}])
    with pytest.raises(sagemaker.exceptions.ResourceLimitExceeded):
        sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "k50", "Value": ""}])


# Kept


def test_everything_survives_restart(tmp_path: Path) -> None:
    server = ControlServer(tmp_path)
    create_endpoint(server.sagemaker, Tags=[{"Key": "a", "Value": "1"}])
    before = without_meta(server.sagemaker.describe_endpoint(EndpointName="endpoint"))
    server.close()
    server = ControlServer(tmp_path)
    try:
        assert without_meta(server.sagemaker.describe_endpoint(EndpointName="endpoint")) == before
        tags = server.sagemaker.list_tags(ResourceArn=before["EndpointArn"])["Tags"]
        assert tags == [{"Key": "a", "Value": "1"}]
    finally:
        server.close()
