"""SageMaker's control plane: models, endpoint configs, endpoints and their tags, over the catalog.

Decides what may be asked of an endpoint and writes that down; the fleet makes it so and moves the status on. Knows no
processes and no wire form: parameters come validated by the service's model, times are seconds since the epoch.

Left open by AWS, and decided here: names are told apart by case when they are looked up, and not when they are created
(ARNs are in lower case, as AWS's are); an endpoint can't change between asynchronous and not by an update.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from endpoint.aws.service import AwsError, not_implemented
from endpoint.control_plane.pagination import page
from endpoint.control_plane.validation import validate_config, validate_deployment, validate_model, validate_tags
from endpoint.settings import Settings
from endpoint.state.catalog import Catalog, Deployment, Endpoint, Exists, Kind, NotFound, Resource

MAX_TAGS = 50
_NOUNS: dict[Kind, str] = {"model": "model", "endpoint-config": "endpoint configuration", "endpoint": "endpoint"}
_SUMMARIES: dict[Kind, tuple[str, str]] = {
    "model": ("Models", "Model"),
    "endpoint-config": ("EndpointConfigs", "EndpointConfig"),
    "endpoint": ("Endpoints", "Endpoint"),
}

Parameters = dict[str, Any]
Result = dict[str, Any]


class FleetPort(Protocol):
    def wake(self) -> None:
        """Rows of endpoints have changed."""


class ControlPlane:
    """Owns the endpoints' way out of InService and Failed; one of it per catalog."""

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        fleet: FleetPort,
        on_change: Callable[[str], Awaitable[None]],
    ) -> None:
        """`on_change` gets the endpoint's name after Create, Update and UpdateWeightsAndCapacities (test notices)."""
        self._settings = settings
        self._catalog = catalog
        self._fleet = fleet
        self._on_change = on_change
        self._one_at_a_time = asyncio.Lock()  # between looking at an endpoint's status and changing it
        self._operations: dict[str, Callable[[Parameters], Awaitable[Result]]] = {
            "CreateModel": self._create_model,
            "DescribeModel": self._describe_model,
            "ListModels": lambda parameters: self._list("model", parameters),
            "DeleteModel": self._delete_model,
            "CreateEndpointConfig": self._create_config,
            "DescribeEndpointConfig": self._describe_config,
            "ListEndpointConfigs": lambda parameters: self._list("endpoint-config", parameters),
            "DeleteEndpointConfig": self._delete_config,
            "CreateEndpoint": self._create_endpoint,
            "DescribeEndpoint": self._describe_endpoint,
            "ListEndpoints": lambda parameters: self._list("endpoint", parameters),
            "DeleteEndpoint": self._delete_endpoint,
            "UpdateEndpoint": self._update_endpoint,
            "UpdateEndpointWeightsAndCapacities": self._update_capacity,
            "AddTags": self._add_tags,
            "ListTags": self._list_tags,
            "DeleteTags": self._delete_tags,
        }

    async def call(self, operation: str, parameters: Parameters) -> Result:
        """Raises AwsError."""
        if operation not in self._operations:
            raise not_implemented(operation)
        return await self._operations[operation](parameters)

    # Models and configs

    async def _create_model(self, parameters: Parameters) -> Result:
        validate_model(parameters)
        return {"ModelArn": await self._create("model", parameters["ModelName"], parameters)}

    async def _describe_model(self, parameters: Parameters) -> Result:
        model = await self._get("model", parameters["ModelName"])
        described = {"EnableNetworkIsolation": False, **_without_tags(model.request)}
        return {**described, "ModelArn": model.arn, "CreationTime": model.created_at}

    async def _create_config(self, parameters: Parameters) -> Result:
        validate_config(parameters)
        for variant in parameters["ProductionVariants"]:
            await self._get("model", variant["ModelName"])
            variant.setdefault("InitialVariantWeight", 1.0)
        name = parameters["EndpointConfigName"]
        return {"EndpointConfigArn": await self._create("endpoint-config", name, parameters)}

    async def _describe_config(self, parameters: Parameters) -> Result:
        config = await self._get("endpoint-config", parameters["EndpointConfigName"])
        described = {"EnableNetworkIsolation": False, **_without_tags(config.request)}
        return {**described, "EndpointConfigArn": config.arn, "CreationTime": config.created_at}

    # Endpoints go on with the model and config that they have: both may be deleted at any time.

    async def _delete_model(self, parameters: Parameters) -> Result:
        return await self._delete("model", parameters["ModelName"])

    async def _delete_config(self, parameters: Parameters) -> Result:
        return await self._delete("endpoint-config", parameters["EndpointConfigName"])

    # Endpoints

    async def _create_endpoint(self, parameters: Parameters) -> Result:
        deployment_config = parameters.get("DeploymentConfig")
        validate_deployment(deployment_config)
        name, config_name = parameters["EndpointName"], parameters["EndpointConfigName"]
        deployment = await self._deployable(config_name)
        state = {
            "status": "Creating",
            "failure_reason": None,
            "config_name": config_name,
            "target_config_name": None,
            "desired": deployment.variant["InitialInstanceCount"],
            "current": 0,
            "deployment_config": deployment_config,
            "deployed": {config_name: _as_json(deployment)},
        }
        arn = await self._create("endpoint", name, parameters, state)
        await self._changed(name)
        return {"EndpointArn": arn}

    async def _describe_endpoint(self, parameters: Parameters) -> Result:
        endpoint = await self._endpoint(parameters["EndpointName"])
        result: Result = {
            "EndpointName": endpoint.name,
            "EndpointArn": endpoint.arn,
            "EndpointConfigName": endpoint.config_name,
            "EndpointStatus": endpoint.status,
            "FailureReason": endpoint.failure_reason,
            "CreationTime": endpoint.created_at,
            "LastModifiedTime": endpoint.modified_at,
            "LastDeploymentConfig": endpoint.deployment_config,
            "PendingDeploymentSummary": await self._pending(endpoint),
        }
        if deployment := await self._deployment(endpoint, endpoint.config_name):
            result["ProductionVariants"] = [_variant_summary(endpoint, deployment)]
            for name in ("AsyncInferenceConfig", "MetricsConfig"):
                result[name] = deployment.config.get(name)
        return result

    async def _pending(self, endpoint: Endpoint) -> Result | None:
        """What is under way with a new config: while `Creating`, and while `Updating` by UpdateEndpoint."""
        name = endpoint.config_name if endpoint.status == "Creating" else endpoint.target_config_name
        deployment = await self._deployment(endpoint, name) if name else None
        if deployment is None:
            return None
        variant = _variant_summary(endpoint, deployment)
        variant["InstanceType"] = deployment.variant.get("InstanceType")
        if name != endpoint.config_name:
            del variant["CurrentInstanceCount"]  # the row counts those of the config that serves
        return {"EndpointConfigName": name, "ProductionVariants": [variant], "StartTime": endpoint.modified_at}

    async def _update_endpoint(self, parameters: Parameters) -> Result:
        name, config_name = parameters["EndpointName"], parameters["EndpointConfigName"]
        async with self._one_at_a_time:
            endpoint = await self._updatable(name)
            if config_name == endpoint.config_name:
                raise _invalid(
                    "Cannot update endpoint with the currently in use endpoint configuration "
                    f'"{self._arn("endpoint-config", config_name)}".'
                )
            deployment_config = _deployment_config(endpoint, parameters)
            validate_deployment(deployment_config)
            deployment = await self._deployable(config_name)
            serving = await self._catalog.deployment(endpoint, endpoint.config_name)
            if ("AsyncInferenceConfig" in serving.config) != ("AsyncInferenceConfig" in deployment.config):
                raise _invalid("An update by the local endpoint can neither add nor remove AsyncInferenceConfig.")
            retained = _retained(parameters)
            await self._change(
                endpoint,
                status="Updating",
                failure_reason=None,
                target_config_name=config_name,
                desired=endpoint.desired
                if "DesiredInstanceCount" in retained
                else deployment.variant["InitialInstanceCount"],
                weight=_weight(endpoint, serving) if "DesiredWeight" in retained else None,
                deployment_config=deployment_config,
                deployed={endpoint.config_name: _as_json(serving), config_name: _as_json(deployment)},
            )
        await self._changed(name)
        return {"EndpointArn": endpoint.arn}

    async def _update_capacity(self, parameters: Parameters) -> Result:
        name = parameters["EndpointName"]
        async with self._one_at_a_time:
            endpoint = await self._updatable(name)
            deployment = await self._catalog.deployment(endpoint, endpoint.config_name)
            wanted = _wanted_of(deployment, parameters["DesiredWeightsAndCapacities"])
            await self._change(
                endpoint,
                status="Updating",
                failure_reason=None,
                desired=wanted.get("DesiredInstanceCount", endpoint.desired),
                weight=wanted.get("DesiredWeight", endpoint.weight),
            )
        await self._changed(name)
        return {"EndpointArn": endpoint.arn}

    async def _delete_endpoint(self, parameters: Parameters) -> Result:
        async with self._one_at_a_time:
            endpoint = await self._endpoint(parameters["EndpointName"])
            if endpoint.status not in ("InService", "Failed"):
                raise _in_progress(endpoint)
            await self._change(endpoint, status="Deleting")
        self._fleet.wake()
        return {}

    async def _updatable(self, name: str) -> Endpoint:
        endpoint = await self._endpoint(name)
        if endpoint.status == "Failed":
            raise _invalid(f'Cannot update failed endpoint "{endpoint.arn}".')
        if endpoint.status != "InService":
            raise _in_progress(endpoint)
        return endpoint

    async def _change(self, endpoint: Endpoint, **changes: Any) -> None:
        try:
            await self._catalog.change_endpoint(endpoint.name, **changes)
        except NotFound:
            raise self._not_found("endpoint", endpoint.name) from None

    async def _changed(self, name: str) -> None:
        self._fleet.wake()
        await self._on_change(name)

    # Tags

    async def _add_tags(self, parameters: Parameters) -> Result:
        arn = await self._tagged(parameters["ResourceArn"])
        validate_tags(parameters["Tags"])
        tags = {tag["Key"]: tag["Value"] for tag in parameters["Tags"]}
        if len(await self._catalog.tags(arn) | tags) > MAX_TAGS:
            raise AwsError("ResourceLimitExceeded", f"A resource can have at most {MAX_TAGS} tags.")
        await self._catalog.add_tags(arn, tags)
        return await self._list_tags({"ResourceArn": arn})

    async def _list_tags(self, parameters: Parameters) -> Result:
        """All at once: the least MaxResults is as many as a resource can have."""
        if "NextToken" in parameters:
            raise _invalid("NextToken is not one that this operation gave.")
        tags = await self._catalog.tags(await self._tagged(parameters["ResourceArn"]))
        return {"Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}

    async def _delete_tags(self, parameters: Parameters) -> Result:
        await self._catalog.remove_tags(await self._tagged(parameters["ResourceArn"]), parameters["TagKeys"])
        return {}

    async def _tagged(self, arn: str) -> str:
        """The ARN, if it is of something here."""
        if not await self._catalog.exists(arn):
            kind = arn.split(":", 5)[5].split("/")[0]
            noun = next((noun for name, noun in _NOUNS.items() if name == kind), "resource")
            raise _invalid(f'Could not find {noun} "{arn}".')
        return arn

    # What all kinds have in common

    async def _create(self, kind: Kind, name: str, parameters: Parameters, state: dict[str, Any] | None = None) -> str:
        tags = parameters.get("Tags", [])
        validate_tags(tags)
        arn = self._arn(kind, name)
        by_key = {tag["Key"]: tag["Value"] for tag in tags}
        try:
            await self._catalog.create(kind, name, arn, parameters, by_key, state or {})
        except Exists:
            raise _invalid(f'Cannot create already existing {_NOUNS[kind]} "{arn}".') from None
        return arn

    async def _get(self, kind: Kind, name: str) -> Resource:
        try:
            return await self._catalog.get(kind, name)
        except NotFound:
            raise self._not_found(kind, name) from None

    async def _endpoint(self, name: str) -> Endpoint:
        try:
            return await self._catalog.endpoint(name)
        except NotFound:
            raise self._not_found("endpoint", name) from None

    async def _deployable(self, config_name: str) -> Deployment:
        config = await self._get("endpoint-config", config_name)
        model = await self._get("model", config.request["ProductionVariants"][0]["ModelName"])
        return Deployment(config=_without_tags(config.request), model=_without_tags(model.request))

    async def _deployment(self, endpoint: Endpoint, config_name: str) -> Deployment | None:
        try:
            return await self._catalog.deployment(endpoint, config_name)
        except NotFound:
            return None

    async def _delete(self, kind: Kind, name: str) -> Result:
        try:
            await self._catalog.delete(kind, name)
        except NotFound:
            raise self._not_found(kind, name) from None
        return {}

    async def _list(self, kind: Kind, parameters: Parameters) -> Result:
        members, prefix = _SUMMARIES[kind]
        token: str | None
        if kind == "endpoint":
            endpoints, token = page(await self._catalog.endpoints(), parameters)
            summaries = [
                _summary(prefix, endpoint)
                | {"LastModifiedTime": endpoint.modified_at, "EndpointStatus": endpoint.status}
                for endpoint in endpoints
            ]
        else:
            rows, token = page(await self._catalog.all(kind), parameters)
            summaries = [_summary(prefix, row) for row in rows]
        return {members: summaries, "NextToken": token}

    def _arn(self, kind: Kind, name: str) -> str:
        region, account = self._settings.region, self._settings.account
        partition = {"cn": "aws-cn", "us-gov": "aws-us-gov"}.get(region.rsplit("-", 2)[0], "aws")
        return f"arn:{partition}:sagemaker:{region}:{account}:{kind}/{name.lower()}"

    def _not_found(self, kind: Kind, name: str) -> AwsError:
        return _invalid(f'Could not find {_NOUNS[kind]} "{self._arn(kind, name)}".')


def _invalid(message: str) -> AwsError:
    return AwsError("ValidationException", message)


def _in_progress(endpoint: Endpoint) -> AwsError:
    """AWS says "update" of deletions, too."""
    return _invalid(f'Cannot update in-progress endpoint "{endpoint.arn}".')


def _summary(prefix: str, row: Resource | Endpoint) -> Result:
    return {f"{prefix}Name": row.name, f"{prefix}Arn": row.arn, "CreationTime": row.created_at}


def _variant_summary(endpoint: Endpoint, deployment: Deployment) -> Result:
    """Local images aren't resolved to digests, so the resolved one is the one specified."""
    variant, image = deployment.variant, deployment.container["Image"]
    weight = _weight(endpoint, deployment)
    images = [{"SpecifiedImage": image, "ResolvedImage": image, "ResolutionTime": endpoint.created_at}]
    summary = {
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
        summary["InstancePools"] = [{"InstanceType": first["InstanceType"], "CurrentInstanceCount": endpoint.current}]
    if endpoint.status in ("Creating", "Updating", "Deleting"):
        summary["VariantStatus"] = [{"Status": endpoint.status, "StartTime": endpoint.modified_at}]
    return summary


def _weight(endpoint: Endpoint, deployment: Deployment) -> float:
    weight = deployment.variant.get("InitialVariantWeight", 1) if endpoint.weight is None else endpoint.weight
    return float(weight)


def _wanted_of(deployment: Deployment, wanted: list[dict[str, Any]]) -> dict[str, Any]:
    """The entry of UpdateEndpointWeightsAndCapacities for the one variant. Raises AwsError."""
    name = deployment.variant["VariantName"]
    for entry in wanted:
        if entry["VariantName"] != name:
            raise _invalid(f'Could not find variant "{entry["VariantName"]}": the endpoint has "{name}".')
        if "ServerlessUpdateConfig" in entry:
            raise _invalid("ServerlessUpdateConfig is only for serverless variants.")
    entry = wanted[0]
    if len(wanted) > 1:
        raise _invalid(f'Variant "{name}" is given more than once.')
    if entry.get("DesiredInstanceCount") == 0 and "AsyncInferenceConfig" not in deployment.config:
        raise _invalid("DesiredInstanceCount can only be 0 for asynchronous endpoints.")
    return entry


def _deployment_config(endpoint: Endpoint, parameters: Parameters) -> dict[str, Any] | None:
    given: dict[str, Any] | None = parameters.get("DeploymentConfig")
    if not parameters.get("RetainDeploymentConfig"):
        return given
    if given is not None:
        raise _invalid("Only one of DeploymentConfig and RetainDeploymentConfig may be specified.")
    return endpoint.deployment_config


def _retained(parameters: Parameters) -> set[str]:
    if not parameters.get("RetainAllVariantProperties"):
        return set()
    excluded = {entry["VariantPropertyType"] for entry in parameters.get("ExcludeRetainedVariantProperties", [])}
    return {"DesiredInstanceCount", "DesiredWeight"} - excluded


def _as_json(deployment: Deployment) -> dict[str, Any]:
    return {"config": deployment.config, "model": deployment.model}


def _without_tags(request: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in request.items() if name != "Tags"}
