"""The one thing that can be scaled here, a variant's number of instances, and its names.

Other service namespaces and dimensions are refused by their names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from endpoint.aws.errors import AwsError
from endpoint.aws.regions import partition_of
from endpoint.settings import Settings

NAMESPACE = "sagemaker"
DIMENSION = "sagemaker:variant:DesiredInstanceCount"
LOCAL = "is not supported by the local endpoint"

_UNSUPPORTED = "Unsupported service namespace, resource type or scalable dimension"
_RESOURCE = re.compile(r"endpoint/(?P<endpoint>[^/]+)/variant/(?P<variant>[^/]+)")
_TARGET_PREFIX = "056m"
"""Four characters in front of the id in a target's ARN: those of SageMaker's targets."""


def invalid(message: str) -> AwsError:
    """Return AWS's error for refused parameters."""
    return AwsError("ValidationException", message)


def check_service(parameters: dict[str, Any]) -> None:
    """Check ServiceNamespace, and ScalableDimension where there is one. Raises AwsError."""
    namespace, dimension = parameters["ServiceNamespace"], parameters.get("ScalableDimension", DIMENSION)
    if namespace != NAMESPACE:
        raise invalid(f"Service namespace {namespace} {LOCAL}: it has {NAMESPACE}.")
    if not dimension.startswith(f"{NAMESPACE}:"):
        raise invalid(f"{_UNSUPPORTED}: {dimension} is none of {NAMESPACE}.")
    if dimension != DIMENSION:
        raise invalid(f"Scalable dimension {dimension} {LOCAL}: it has {DIMENSION}.")


def check_resource(resource_id: str) -> None:
    """Check that a ResourceId has the form of a variant's. Raises AwsError."""
    if not _RESOURCE.fullmatch(resource_id):
        raise invalid(f"{_UNSUPPORTED}: ResourceId '{resource_id}' isn't of the form endpoint/NAME/variant/NAME.")


def check_filter(parameters: dict[str, Any]) -> None:
    """Check the filter of a Describe operation with one ResourceId. Raises AwsError."""
    if "ResourceId" in parameters:
        check_resource(parameters["ResourceId"])
    elif "ScalableDimension" in parameters:
        raise invalid("ResourceId must be specified when ScalableDimension is specified")


def variant_of(resource_id: str) -> tuple[str, str]:
    """Return the names of the endpoint and of the variant."""
    found = _RESOURCE.fullmatch(resource_id)
    assert found is not None
    return found["endpoint"], found["variant"]


def resource_id_of(endpoint: str, variant: str) -> str:
    return f"endpoint/{endpoint}/variant/{variant}"


def no_target(parameters: dict[str, Any], verb: str) -> AwsError:
    """Return the error of an operation on a target that isn't there: "registered" in Put operations, else "found"."""
    what = (
        f"service namespace: {NAMESPACE}, resource ID: {parameters['ResourceId']}, scalable dimension: "
        f"{parameters['ScalableDimension']}"
    )
    return AwsError("ObjectNotFoundException", f"No scalable target {verb} for {what}")


@dataclass(frozen=True, slots=True)
class Arns:
    """Names of one account and region. A target's id is the UUID in the ARNs of all that belongs to it."""

    settings: Settings

    def role(self) -> str:
        """Return the ARN of the service-linked role, which scales whatever RoleARN says."""
        partition, account = partition_of(self.settings.region), self.settings.account
        service = f"{NAMESPACE}.application-autoscaling.amazonaws.com"
        name = "AWSServiceRoleForApplicationAutoScaling_SageMakerEndpoint"
        return f"arn:{partition}:iam::{account}:role/aws-service-role/{service}/{name}"

    def target(self, target_id: str) -> str:
        return f"{self._start('application-autoscaling')}:scalable-target/{_TARGET_PREFIX}{target_id.replace('-', '')}"

    def policy(self, target_arn: str, resource_id: str, name: str) -> str:
        return f"{self._owned('scalingPolicy', target_arn, resource_id)}:policyName/{name}"

    def scheduled_action(self, target_arn: str, resource_id: str, name: str) -> str:
        return f"{self._owned('scheduledAction', target_arn, resource_id)}:scheduledActionName/{name}"

    def _owned(self, kind: str, target_arn: str, resource_id: str) -> str:
        return f"{self._start('autoscaling')}:{kind}:{target_id_of(target_arn)}:resource/{NAMESPACE}/{resource_id}"

    def _start(self, service: str) -> str:
        region = self.settings.region
        return f"arn:{partition_of(region)}:{service}:{region}:{self.settings.account}"


def target_id_of(target_arn: str) -> str:
    """Return a target's id, a UUID, of its ARN."""
    digits = target_arn.rpartition("/")[2].removeprefix(_TARGET_PREFIX)
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
