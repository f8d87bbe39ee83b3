"""Rules for models, endpoint configs and deployments beyond those for each parameter by itself.

Two kinds are refused: what SageMaker refuses too (of asynchronous endpoints, above all), and what would matter and the
local endpoint can't honour. What doesn't affect the workflow (VpcConfig, KMS keys, AMI versions, ...) is only stored.
"""

from __future__ import annotations

import re
from typing import Any

from endpoint.aws.errors import AwsError
from endpoint.aws.instance_types import find_instance_type
from endpoint.aws.s3_location import parse_location
from endpoint.control_plane.environment_rules import rejection_reason
from endpoint.state.catalog import Deployment

_LOCAL = "is not supported by the local endpoint"
_METRIC_FREQUENCIES_S = (10, 30, 60, 120, 180, 240, 300)
_FAMILIES_WITHOUT_VOLUMES = ("g5", "g6", "p5", "trn1")
"""Families of instances with storage of their own, besides those with a "d" in their name (g4dn, p4d and so on): the
list of SageMaker's SDK."""


def invalid(message: str) -> AwsError:
    """Return AWS's error for refused parameters."""
    return AwsError("ValidationException", message)


def validate_model(parameters: dict[str, Any], *, is_process: bool = True) -> None:
    """Check CreateModel's parameters, for a container that is a process or a real one. Raises AwsError."""
    containers = parameters.get("Containers", [])
    primary = parameters.get("PrimaryContainer")
    if (primary is not None) == bool(containers):
        raise invalid("Exactly one of PrimaryContainer and Containers must be specified.")
    if len(containers) > 1:
        raise invalid(f"A model of several Containers {_LOCAL}: it runs one container per instance.")
    if parameters.get("InferenceExecutionConfig"):
        raise invalid(f"InferenceExecutionConfig {_LOCAL}: it runs one container per instance.")
    container = containers[0] if primary is None else primary
    if "ModelPackageName" in container or "InferenceSpecificationName" in container:
        raise invalid(f"ModelPackageName {_LOCAL}: give an Image.")
    if "Image" not in container:
        raise invalid("The container must have an Image.")
    if container.get("Mode") == "MultiModel" or "MultiModelConfig" in container:
        raise invalid(f"Mode MultiModel {_LOCAL}, nor by asynchronous endpoints.")
    if container.get("AdditionalModelDataSources"):
        raise invalid(f"AdditionalModelDataSources {_LOCAL}.")
    if "ModelDataUrl" in container and "ModelDataSource" in container:
        raise invalid("Only one of ModelDataUrl and ModelDataSource may be specified.")
    if source := container.get("ModelDataSource", {}).get("S3DataSource"):
        _validate_source(source)
    for scraped in container.get("ContainerMetricsConfig", {}).get("MetricsEndpoints", []):
        _validate_metric_frequency(scraped)
    if reason := rejection_reason(container.get("Environment", {}), is_process=is_process):
        raise invalid(reason)


def _validate_source(source: dict[str, Any]) -> None:
    for name in ("ManifestS3Uri", "ManifestEtag", "HubAccessConfig"):
        if name in source:
            raise invalid(f"S3DataSource.{name} {_LOCAL}.")
    if source["S3DataType"] == "S3Prefix":
        if "ETag" in source:
            raise invalid(f"S3DataSource.ETag with S3DataType S3Prefix {_LOCAL}.")
        if not source["S3Uri"].endswith("/"):
            raise invalid("S3Uri must end with a forward slash (/) when S3DataType is S3Prefix.")
        if source["CompressionType"] == "Gzip":
            raise invalid("CompressionType Gzip needs S3DataType S3Object.")


def validate_config(parameters: dict[str, Any]) -> None:
    """Check CreateEndpointConfig's parameters. Raises AwsError."""
    is_async = "AsyncInferenceConfig" in parameters
    supporter = "by asynchronous endpoints" if is_async else "by the local endpoint"
    if len(parameters["ProductionVariants"]) > 1:
        raise invalid(f"Several ProductionVariants are not supported {supporter}: give one.")
    if parameters.get("ShadowProductionVariants"):
        raise invalid(f"ShadowProductionVariants are not supported {supporter}.")
    if parameters.get("DataCaptureConfig", {"EnableCapture": False}).get("EnableCapture", True):
        raise invalid(f"DataCaptureConfig is not supported {supporter}.")
    if parameters.get("ExplainerConfig"):
        raise invalid(f"ExplainerConfig is not supported {supporter}.")
    if parameters.get("EnableNetworkIsolation"):
        raise invalid(f"EnableNetworkIsolation of an endpoint config {_LOCAL}: set the model's.")
    if is_async:
        output = parameters["AsyncInferenceConfig"]["OutputConfig"]
        if not output.get("S3OutputPath"):
            raise invalid(f"An AsyncInferenceConfig without OutputConfig.S3OutputPath {_LOCAL}.")
        for name in ("S3OutputPath", "S3FailurePath"):
            if (path := output.get(name)) is None:
                continue
            try:  # AWS's pattern allows what isn't a location
                bucket, _ = parse_location(f"{path.rstrip('/')}/x")
            except ValueError:
                raise invalid(f"{name} {path} is not a location on S3.") from None
            if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
                raise invalid(f"{name} {path}: invalid bucket name.")
    _validate_metric_frequency(parameters.get("MetricsConfig", {}))
    _validate_variant(parameters["ProductionVariants"][0], supporter)


def _validate_variant(variant: dict[str, Any], supporter: str) -> None:
    if "ServerlessConfig" in variant:
        raise invalid(f"ServerlessConfig is not supported {supporter}.")
    if "ManagedInstanceScaling" in variant:
        raise invalid("ManagedInstanceScaling is only supported for inference component endpoints.")
    if "ModelName" not in variant:
        raise invalid(f"A variant without ModelName (inference components) {_LOCAL}.")
    for name in ("AcceleratorType", "CoreDumpConfig"):
        if name in variant:
            raise invalid(f"{name} {_LOCAL}.")
    pools = variant.get("InstancePools", [])
    if ("InstanceType" in variant) == bool(pools):
        raise invalid("Exactly one of InstanceType and InstancePools must be specified for a variant.")
    if any("ModelNameOverride" in pool for pool in pools):
        raise invalid(f"InstancePools with ModelNameOverride {_LOCAL}: all instances run ModelName.")
    if "InitialInstanceCount" not in variant:
        raise invalid("InitialInstanceCount must be specified for a variant of instances.")
    _validate_routing(variant.get("RoutingConfig", {}))
    if "VolumeSizeInGB" in variant:
        for name in [pool["InstanceType"] for pool in pools or [variant]]:
            family = name.removeprefix("ml.").partition(".")[0]
            if "d" in family or family.startswith(_FAMILIES_WITHOUT_VOLUMES):
                raise invalid(f"VolumeSizeInGB parameter is not allowed for the selected Instance type {name}.")


def _validate_routing(config: dict[str, Any]) -> None:
    prefix_aware = config.get("PrefixAwareRoutingConfig")
    if config.get("RoutingStrategy") != "PREFIX_AWARE":
        if prefix_aware is not None:
            raise invalid("PrefixAwareRoutingConfig may only be specified when RoutingStrategy is PREFIX_AWARE.")
        return
    for name in ("PrefixLength", "ConcurrencyThreshold"):
        if name not in (prefix_aware or {}):
            raise invalid(f"PrefixAwareRoutingConfig.{name} must be specified when RoutingStrategy is PREFIX_AWARE.")


def _validate_metric_frequency(config: dict[str, Any]) -> None:
    if (seconds := config.get("MetricPublishFrequencyInSeconds", 60)) not in _METRIC_FREQUENCIES_S:
        valid = ", ".join(map(str, _METRIC_FREQUENCIES_S))
        raise invalid(f"Invalid MetricPublishFrequencyInSeconds {seconds}. Valid values: {valid}.")


def validate_limits(parameters: dict[str, Any]) -> None:
    """Check that --limits knows the instance types of CreateEndpointConfig's parameters. Raises AwsError."""
    for variant in parameters["ProductionVariants"]:
        for name in [pool["InstanceType"] for pool in variant.get("InstancePools") or [variant]]:
            if find_instance_type(name) is None:
                raise invalid(f"InstanceType {name} {_LOCAL} with --limits: its processors and memory are not known.")


def validate_deployment(config: dict[str, Any] | None) -> None:
    """Check a DeploymentConfig: an update starts all new instances before it ends the old ones. Raises AwsError."""
    if config is None:
        return
    if "RollingUpdatePolicy" in config:
        raise invalid(f"RollingUpdatePolicy {_LOCAL}: it updates blue/green, all at once.")
    if config.get("AutoRollbackConfiguration", {}).get("Alarms"):
        raise invalid(f"AutoRollbackConfiguration {_LOCAL}.")
    policy = config.get("BlueGreenUpdatePolicy", {})
    routing = policy.get("TrafficRoutingConfiguration", {"Type": "ALL_AT_ONCE"})
    if routing["Type"] != "ALL_AT_ONCE":
        raise invalid(f"TrafficRoutingConfiguration {routing['Type']} {_LOCAL}: it updates ALL_AT_ONCE.")
    if routing.get("WaitIntervalInSeconds"):
        raise invalid(f"A WaitIntervalInSeconds other than 0 {_LOCAL}.")
    for name in ("TerminationWaitInSeconds", "MaximumExecutionTimeoutInSeconds"):
        if policy.get(name):
            raise invalid(f"{name} {_LOCAL}.")


def validate_tags(tags: list[dict[str, str]]) -> None:
    """Check the keys of tags that come together. Raises AwsError."""
    keys = [tag["Key"] for tag in tags]
    if repeated := sorted({key for key in keys if keys.count(key) > 1}):
        raise invalid(f"Tag keys must be unique; repeated: {', '.join(repeated)}.")
    if any(key.lower().startswith("aws:") for key in keys):
        raise invalid("aws: prefixed tag key names are not allowed for external use.")


def validate_variant_update(deployment: Deployment, entries: list[dict[str, Any]]) -> None:
    """Check DesiredWeightsAndCapacities of UpdateEndpointWeightsAndCapacities. Raises AwsError."""
    name = deployment.variant["VariantName"]
    for entry in entries:
        if entry["VariantName"] != name:
            raise invalid(f'Could not find variant "{entry["VariantName"]}": the endpoint has "{name}".')
        if "ServerlessUpdateConfig" in entry:
            raise invalid("ServerlessUpdateConfig is only for serverless variants.")
    if len(entries) > 1:
        raise invalid(f'Variant "{name}" is given more than once.')
    if entries[0].get("DesiredInstanceCount") == 0 and "AsyncInferenceConfig" not in deployment.config:
        raise invalid("DesiredInstanceCount can only be 0 for asynchronous endpoints.")
