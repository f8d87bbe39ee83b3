"""Models, endpoint configs and endpoints as Describe and List operations show them, without their tags."""

from __future__ import annotations

from typing import Any

from endpoint.state.catalog import Deployment, Endpoint, Resource


def description(prefix: str, resource: Resource) -> dict[str, Any]:
    """Describe a model or config, whose members begin with `prefix`."""
    request = {"EnableNetworkIsolation": False, **without_tags(resource.request)}
    return request | {f"{prefix}Arn": resource.arn, "CreationTime": resource.created_at}


def summary(prefix: str, row: Resource | Endpoint) -> dict[str, Any]:
    """Describe a row of a list, whose members begin with `prefix`."""
    shown = {f"{prefix}Name": row.name, f"{prefix}Arn": row.arn, "CreationTime": row.created_at}
    if isinstance(row, Endpoint):
        shown |= {"LastModifiedTime": row.modified_at, "EndpointStatus": row.status}
    return shown


def endpoint_description(
    endpoint: Endpoint, serving: Deployment | None, pending: tuple[str, Deployment] | None
) -> dict[str, Any]:
    """Describe an endpoint: `serving` is what runs under its config, `pending` is under way, with its config's name."""
    shown: dict[str, Any] = {
        "EndpointName": endpoint.name,
        "EndpointArn": endpoint.arn,
        "EndpointConfigName": endpoint.config_name,
        "EndpointStatus": endpoint.status,
        "FailureReason": endpoint.failure_reason,
        "CreationTime": endpoint.created_at,
        "LastModifiedTime": endpoint.modified_at,
        "LastDeploymentConfig": endpoint.deployment_config,
    }
    if pending:
        config_name, deployment = pending
        variant = _variant_summary(endpoint, deployment) | {"InstanceType": deployment.variant.get("InstanceType")}
        if config_name != endpoint.config_name:
            del variant["CurrentInstanceCount"]  # the row counts those of the config that serves
        shown["PendingDeploymentSummary"] = {
            "EndpointConfigName": config_name,
            "ProductionVariants": [variant],
            "StartTime": endpoint.modified_at,
        }
    if serving:
        shown["ProductionVariants"] = [_variant_summary(endpoint, serving)]
        for name in ("AsyncInferenceConfig", "MetricsConfig"):
            shown[name] = serving.config.get(name)
    return shown


def weight_of(endpoint: Endpoint, deployment: Deployment) -> float:
    """Return the variant's weight: what was set last, else the config's."""
    return float(deployment.variant.get("InitialVariantWeight", 1) if endpoint.weight is None else endpoint.weight)


def without_tags(request: dict[str, Any]) -> dict[str, Any]:
    """Return a Create operation's parameters but for the tags."""
    return {name: value for name, value in request.items() if name != "Tags"}


def _variant_summary(endpoint: Endpoint, deployment: Deployment) -> dict[str, Any]:
    variant, image = deployment.variant, deployment.container["Image"]
    weight = weight_of(endpoint, deployment)
    # Local images aren't resolved to digests, so the resolved one is the one specified.
    images = [{"SpecifiedImage": image, "ResolvedImage": image, "ResolutionTime": endpoint.created_at}]
    shown = {
        "VariantName": variant["VariantName"],
        "DeployedImages": images,
        "CurrentWeight": weight,
        "DesiredWeight": weight,
        "CurrentInstanceCount": endpoint.current,
        "DesiredInstanceCount": endpoint.desired,
        "RoutingConfig": variant.get("RoutingConfig"),
    }
    if pools := variant.get("InstancePools"):
        first = min(pools, key=lambda pool: pool["Priority"])
        shown["InstancePools"] = [{"InstanceType": first["InstanceType"], "CurrentInstanceCount": endpoint.current}]
    if endpoint.status in ("Creating", "Updating", "Deleting"):
        shown["VariantStatus"] = [{"Status": endpoint.status, "StartTime": endpoint.modified_at}]
    return shown
