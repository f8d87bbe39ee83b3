"""What is refused of models, endpoint configs and deployments although each parameter is valid by itself.

Two kinds: what SageMaker refuses too (of asynchronous endpoints, above all), and what the local endpoint can't honour
and would matter. What has no effect on the workflow (VpcConfig, KMS keys, AMI versions, ...) is stored and described.
"""

from __future__ import annotations

import re
from typing import Any

from endpoint.aws.s3_location import parse_location
from endpoint.aws.service import AwsError
from endpoint.control_plane.environment_rules import rejection_reason

_LOCAL = "is not supported by the local endpoint"


def validate_model(parameters: dict[str, Any]) -> None:
    """Of CreateModel. Raises AwsError."""
    containers = parameters.get("Containers", [])
    primary = parameters.get("PrimaryContainer")
    if (primary is not None) == bool(containers):
        _refuse("Exactly one of PrimaryContainer and Containers must be specified.")
    if len(containers) > 1:
        _refuse(f"A model of several Containers {_LOCAL}: it runs one container an instance.")
    if parameters.get("InferenceExecutionConfig"):
        _refuse(f"InferenceExecutionConfig {_LOCAL}: it runs one container an instance.")
    _validate_container(containers[0] if primary is None else primary)


def _validate_container(container: dict[str, Any]) -> None:
    if "ModelPackageName" in container or "InferenceSpecificationName" in container:
        _refuse(f"ModelPackageName {_LOCAL}: give an Image.")
    if "Image" not in container:
        _refuse("The container must have an Image.")
    if container.get("Mode") == "MultiModel" or "MultiModelConfig" in container:
        _refuse(f"Mode MultiModel {_LOCAL}, nor by asynchronous endpoints.")
    if container.get("AdditionalModelDataSources"):
        _refuse(f"AdditionalModelDataSources {_LOCAL}.")
    if "ModelDataUrl" in container and "ModelDataSource" in container:
        _refuse("Only one of ModelDataUrl and ModelDataSource may be specified.")
    if source := container.get("ModelDataSource", {}).get("S3DataSource"):
        _validate_source(source)
    if reason := rejection_reason(container.get("Environment", {})):
        _refuse(reason)


def _validate_source(source: dict[str, Any]) -> None:
    for name in ("ManifestS3Uri", "ManifestEtag", "HubAccessConfig"):
        if name in source:
            _refuse(f"S3DataSource.{name} {_LOCAL}.")
    if source["S3DataType"] == "S3Prefix":
        if "ETag" in source:
            _refuse(f"S3DataSource.ETag with S3DataType S3Prefix {_LOCAL}.")
        if not source["S3Uri"].endswith("/"):
            _refuse("S3Uri must end with a forward slash (/) when S3DataType is S3Prefix.")
        if source["CompressionType"] == "Gzip":
            _refuse("CompressionType Gzip needs S3DataType S3Object.")


def validate_config(parameters: dict[str, Any]) -> None:
    """Of CreateEndpointConfig. Raises AwsError."""
    is_async = "AsyncInferenceConfig" in parameters
    whose = "by asynchronous endpoints" if is_async else "by the local endpoint"
    if len(parameters["ProductionVariants"]) > 1:
        _refuse(f"Several ProductionVariants are not supported {whose}: give one.")
    if parameters.get("ShadowProductionVariants"):
        _refuse(f"ShadowProductionVariants are not supported {whose}.")
    if parameters.get("DataCaptureConfig", {"EnableCapture": False}).get("EnableCapture", True):
        _refuse(f"DataCaptureConfig is not supported {whose}.")
    if parameters.get("ExplainerConfig"):
        _refuse(f"ExplainerConfig is not supported {whose}.")
    if parameters.get("EnableNetworkIsolation"):
        _refuse(f"EnableNetworkIsolation of an endpoint config {_LOCAL}: set the model's.")
    if is_async and not parameters["AsyncInferenceConfig"]["OutputConfig"].get("S3OutputPath"):
        _refuse(f"An AsyncInferenceConfig without OutputConfig.S3OutputPath {_LOCAL}.")
    if is_async:
        output = parameters["AsyncInferenceConfig"]["OutputConfig"]
        for name in ("S3OutputPath", "S3FailurePath"):
            _validate_path(name, output.get(name))
    _validate_variant(parameters["ProductionVariants"][0], whose)


def _validate_path(name: str, path: str | None) -> None:
    """AWS's pattern lets through what is no place in S3."""
    if path is None:
        return
    try:
        bucket, _ = parse_location(f"{path.rstrip('/')}/x")
    except ValueError:
        _refuse(f"{name} {path} is no place in S3.")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
        _refuse(f"{name} {path}: there can't be a bucket of that name.")


def _validate_variant(variant: dict[str, Any], whose: str) -> None:
    if "ServerlessConfig" in variant:
        _refuse(f"ServerlessConfig is not supported {whose}.")
    if "ManagedInstanceScaling" in variant:
        _refuse("ManagedInstanceScaling is only supported for inference component endpoints.")
    if "ModelName" not in variant:
        _refuse(f"A variant without ModelName (inference components) {_LOCAL}.")
    for name in ("AcceleratorType", "CoreDumpConfig"):
        if name in variant:
            _refuse(f"{name} {_LOCAL}.")
    pools = variant.get("InstancePools", [])
    if ("InstanceType" in variant) == bool(pools):
        _refuse("Exactly one of InstanceType and InstancePools must be specified for a variant.")
    if any("ModelNameOverride" in pool for pool in pools):
        _refuse(f"InstancePools with ModelNameOverride {_LOCAL}: all instances run ModelName.")
    if "InitialInstanceCount" not in variant:
        _refuse("InitialInstanceCount must be specified for a variant of instances.")


def validate_deployment(config: dict[str, Any] | None) -> None:
    """Of CreateEndpoint or UpdateEndpoint. All at once, the new fleet before the old: no other way is there."""
    if config is None:
        return
    if "RollingUpdatePolicy" in config:
        _refuse(f"RollingUpdatePolicy {_LOCAL}: it updates blue/green, all at once.")
    if config.get("AutoRollbackConfiguration", {}).get("Alarms"):
        _refuse(f"AutoRollbackConfiguration {_LOCAL}.")
    policy = config.get("BlueGreenUpdatePolicy", {})
    routing = policy.get("TrafficRoutingConfiguration", {"Type": "ALL_AT_ONCE"})
    if routing["Type"] != "ALL_AT_ONCE":
        _refuse(f"TrafficRoutingConfiguration {routing['Type']} {_LOCAL}: it updates ALL_AT_ONCE.")
    if routing.get("WaitIntervalInSeconds"):
        _refuse(f"A WaitIntervalInSeconds other than 0 {_LOCAL}.")
    for name in ("TerminationWaitInSeconds", "MaximumExecutionTimeoutInSeconds"):
        if policy.get(name):
            _refuse(f"{name} {_LOCAL}.")


def validate_tags(tags: list[dict[str, str]]) -> None:
    keys = [tag["Key"] for tag in tags]
    if repeated := sorted({key for key in keys if keys.count(key) > 1}):
        _refuse(f"Tag keys must be unique; repeated: {', '.join(repeated)}.")
    if any(key.lower().startswith("aws:") for key in keys):
        _refuse("aws: prefixed tag key names are not allowed for external use.")


def _refuse(message: str) -> None:
    raise AwsError("ValidationException", message)
