"""SageMaker's control plane: models, endpoint configs, endpoints and their tags, over the catalog.

Decides what may be asked of an endpoint and writes that down; the fleet makes it so and moves the status on. Knows no
processes and no wire form: parameters come validated by the service's model, times are seconds since the epoch.

Left open by AWS, and decided here: names are told apart by case when they are looked up, and not when they are created
(ARNs are in lower case, as AWS's are); an endpoint can't change between asynchronous and not by an update.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from endpoint.aws.errors import AwsError, not_implemented
from endpoint.control_plane.descriptions import description, endpoint_description, summary, weight_of, without_tags
from endpoint.control_plane.pagination import page
from endpoint.control_plane.validation import (
    invalid,
    validate_config,
    validate_deployment,
    validate_limits,
    validate_model,
    validate_tags,
    validate_variant_update,
)
from endpoint.settings import Settings
from endpoint.state.catalog import Catalog, Deployment, Endpoint, Exists, Kind, NotFound, Resource

MAX_TAGS = 50
_NOUNS: dict[Kind, str] = {"model": "model", "endpoint-config": "endpoint configuration", "endpoint": "endpoint"}
_PREFIXES: dict[Kind, str] = {"model": "Model", "endpoint-config": "EndpointConfig", "endpoint": "Endpoint"}

Parameters = dict[str, Any]
Result = dict[str, Any]


class ControlPlane:
    """The operations, by AWS's names in `call`. They raise AwsError.

    Owns the endpoints' way out of InService and Failed; there is one of it per catalog.
    """

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        wake_fleet: Callable[[], None],
        on_change: Callable[[str], Awaitable[None]],
        *,
        is_registered: Callable[[str, str], Awaitable[bool]] | None = None,
        deregister: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        """Call `wake_fleet` when rows of endpoints have changed, `on_change` with the name of one made or updated.

        `is_registered` tells whether Application Auto Scaling scales an endpoint's variant; `deregister` is called with
        the name of an endpoint that is about to be deleted. Without them nothing is registered.
        """
        self._settings = settings
        self._catalog = catalog
        self._wake_fleet = wake_fleet
        self._on_change = on_change
        self._is_registered = is_registered
        self._deregister = deregister
        self._lock = asyncio.Lock()  # between looking at an endpoint's status and changing it
        # Models and configs may be deleted at any time: endpoints go on with those that they have.
        self._operations: dict[str, Callable[[Parameters], Awaitable[Result]]] = {
            "CreateModel": self.create_model,
            "DescribeModel": partial(self.describe_resource, "model"),
            "ListModels": partial(self.list_resources, "model"),
            "DeleteModel": partial(self.delete_resource, "model"),
            "CreateEndpointConfig": self.create_config,
            "DescribeEndpointConfig": partial(self.describe_resource, "endpoint-config"),
            "ListEndpointConfigs": partial(self.list_resources, "endpoint-config"),
            "DeleteEndpointConfig": partial(self.delete_resource, "endpoint-config"),
            "CreateEndpoint": self.create_endpoint,
            "DescribeEndpoint": self.describe_endpoint,
            "ListEndpoints": partial(self.list_resources, "endpoint"),
            "DeleteEndpoint": self.delete_endpoint,
            "UpdateEndpoint": self.update_endpoint,
            "UpdateEndpointWeightsAndCapacities": self.update_capacity,
            "AddTags": self.add_tags,
            "ListTags": self.list_tags,
            "DeleteTags": self.delete_tags,
        }

    async def call(self, operation: str, parameters: Parameters) -> Result:
        """Call an operation by its name. Raises AwsError."""
        if operation not in self._operations:
            raise not_implemented(operation)
        return await self._operations[operation](parameters)

    # Models and configs

    async def create_model(self, parameters: Parameters) -> Result:
        validate_model(parameters, is_process=self._settings.runner == "process")
        return {"ModelArn": await self._create("model", parameters["ModelName"], parameters)}

    async def create_config(self, parameters: Parameters) -> Result:
        validate_config(parameters)
        if self._settings.limits:
            validate_limits(parameters)
        for variant in parameters["ProductionVariants"]:
            await self._get("model", variant["ModelName"])
            variant.setdefault("InitialVariantWeight", 1.0)
        name = parameters["EndpointConfigName"]
        return {"EndpointConfigArn": await self._create("endpoint-config", name, parameters)}

    async def describe_resource(self, kind: Kind, parameters: Parameters) -> Result:
        prefix = _PREFIXES[kind]
        return description(prefix, await self._get(kind, parameters[f"{prefix}Name"]))

    async def delete_resource(self, kind: Kind, parameters: Parameters) -> Result:
        name = parameters[f"{_PREFIXES[kind]}Name"]
        with self._must_exist(kind, name):
            await self._catalog.delete(kind, name)
        return {}

    async def list_resources(self, kind: Kind, parameters: Parameters) -> Result:
        prefix = _PREFIXES[kind]
        rows: Sequence[Resource | Endpoint]
        rows = await (self._catalog.endpoints() if kind == "endpoint" else self._catalog.all(kind))
        shown, token = page(rows, parameters)
        return {f"{prefix}s": [summary(prefix, row) for row in shown], "NextToken": token}

    # Endpoints

    async def create_endpoint(self, parameters: Parameters) -> Result:
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
            "deployed": {config_name: asdict(deployment)},
        }
        arn = await self._create("endpoint", name, parameters, state)
        await self._announce(name)
        return {"EndpointArn": arn}

    async def describe_endpoint(self, parameters: Parameters) -> Result:
        endpoint = await self._endpoint(parameters["EndpointName"])
        serving = await self._deployment(endpoint, endpoint.config_name)
        # A config is under way while `Creating`, and while `Updating` by UpdateEndpoint.
        pending_name = endpoint.config_name if endpoint.status == "Creating" else endpoint.target_config_name
        pending = await self._deployment(endpoint, pending_name) if pending_name else None
        return endpoint_description(endpoint, serving, (pending_name, pending) if pending_name and pending else None)

    async def update_endpoint(self, parameters: Parameters) -> Result:
        name, config_name = parameters["EndpointName"], parameters["EndpointConfigName"]
        async with self._lock:
            endpoint = await self._updatable(name)
            if config_name == endpoint.config_name:
                raise invalid(
                    "Cannot update endpoint with the currently in use endpoint configuration "
                    f'"{self._arn("endpoint-config", config_name)}".'
                )
            deployment_config = parameters.get("DeploymentConfig")
            if parameters.get("RetainDeploymentConfig"):
                if deployment_config is not None:
                    raise invalid("Only one of DeploymentConfig and RetainDeploymentConfig may be specified.")
                deployment_config = endpoint.deployment_config
            validate_deployment(deployment_config)
            deployment = await self._deployable(config_name)
            serving = await self._catalog.deployment(endpoint, endpoint.config_name)
            if ("AsyncInferenceConfig" in serving.config) != ("AsyncInferenceConfig" in deployment.config):
                raise invalid("An update by the local endpoint can neither add nor remove AsyncInferenceConfig.")
            await self._check_scaled_variant(endpoint, serving, deployment)
            desired, weight = deployment.variant["InitialInstanceCount"], None
            if parameters.get("RetainAllVariantProperties"):
                excluded = parameters.get("ExcludeRetainedVariantProperties", [])
                replaced = {entry["VariantPropertyType"] for entry in excluded}
                desired = desired if "DesiredInstanceCount" in replaced else endpoint.desired
                weight = None if "DesiredWeight" in replaced else weight_of(endpoint, serving)
            await self._start_update(
                endpoint,
                target_config_name=config_name,
                desired=desired,
                weight=weight,
                deployment_config=deployment_config,
                deployed={endpoint.config_name: asdict(serving), config_name: asdict(deployment)},
            )
        await self._announce(name)
        return {"EndpointArn": endpoint.arn}

    async def update_capacity(self, parameters: Parameters) -> Result:
        name = parameters["EndpointName"]
        async with self._lock:
            endpoint = await self._updatable(name)
            deployment = await self._catalog.deployment(endpoint, endpoint.config_name)
            entries = parameters["DesiredWeightsAndCapacities"]
            validate_variant_update(deployment, entries)
            desired = entries[0].get("DesiredInstanceCount", endpoint.desired)
            weight = entries[0].get("DesiredWeight", endpoint.weight)
            await self._start_update(endpoint, desired=desired, weight=weight)
        await self._announce(name)
        return {"EndpointArn": endpoint.arn}

    async def delete_endpoint(self, parameters: Parameters) -> Result:
        async with self._lock:
            endpoint = await self._endpoint(parameters["EndpointName"])
            if endpoint.status not in ("InService", "Failed"):
                raise _in_progress(endpoint)
            if self._deregister is not None:
                await self._deregister(endpoint.name)  # first: a gateway killed here leaves an endpoint to delete
            with self._must_exist("endpoint", endpoint.name):
                await self._catalog.change_endpoint(endpoint.name, status="Deleting")
            if self._deregister is not None:
                await self._deregister(endpoint.name)  # again: a variant may have been registered in between
        self._wake_fleet()
        return {}

    # Tags

    async def add_tags(self, parameters: Parameters) -> Result:
        arn = parameters["ResourceArn"]
        await self._check_exists(arn)
        validate_tags(parameters["Tags"])
        tags = {tag["Key"]: tag["Value"] for tag in parameters["Tags"]}
        if len(await self._catalog.tags(arn) | tags) > MAX_TAGS:
            raise AwsError("ResourceLimitExceeded", f"A resource can have at most {MAX_TAGS} tags.")
        await self._catalog.add_tags(arn, tags)
        return await self.list_tags({"ResourceArn": arn})

    async def list_tags(self, parameters: Parameters) -> Result:
        # All at once: the smallest MaxResults is as many as a resource can have.
        if "NextToken" in parameters:
            raise invalid("NextToken is not one that this operation gave.")
        await self._check_exists(parameters["ResourceArn"])
        tags = await self._catalog.tags(parameters["ResourceArn"])
        return {"Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}

    async def delete_tags(self, parameters: Parameters) -> Result:
        await self._check_exists(parameters["ResourceArn"])
        await self._catalog.remove_tags(parameters["ResourceArn"], parameters["TagKeys"])
        return {}

    async def _check_exists(self, arn: str) -> None:
        if not await self._catalog.exists(arn):
            kind = arn.split(":", 5)[5].split("/")[0]
            noun = next((noun for name, noun in _NOUNS.items() if name == kind), "resource")
            raise invalid(f'Could not find {noun} "{arn}".')

    # What all kinds have in common

    async def _create(self, kind: Kind, name: str, parameters: Parameters, state: dict[str, Any] | None = None) -> str:
        tags = parameters.get("Tags", [])
        validate_tags(tags)
        arn = self._arn(kind, name)
        by_key = {tag["Key"]: tag["Value"] for tag in tags}
        try:
            await self._catalog.create(kind, name, arn, parameters, by_key, state or {})
        except Exists:
            raise invalid(f'Cannot create already existing {_NOUNS[kind]} "{arn}".') from None
        return arn

    async def _get(self, kind: Kind, name: str) -> Resource:
        with self._must_exist(kind, name):
            return await self._catalog.get(kind, name)

    async def _endpoint(self, name: str) -> Endpoint:
        with self._must_exist("endpoint", name):
            return await self._catalog.endpoint(name)

    async def _updatable(self, name: str) -> Endpoint:
        endpoint = await self._endpoint(name)
        if endpoint.status == "Failed":
            raise invalid(f'Cannot update failed endpoint "{endpoint.arn}".')
        if endpoint.status != "InService":
            raise _in_progress(endpoint)
        return endpoint

    async def _check_scaled_variant(self, endpoint: Endpoint, serving: Deployment, new: Deployment) -> None:
        """Refuse other instance types for a variant that Application Auto Scaling scales. Raises AwsError."""
        name = new.variant["VariantName"]
        if self._is_registered is None or name != serving.variant["VariantName"]:
            return
        if serving.instance_types != new.instance_types and await self._is_registered(endpoint.name, name):
            raise invalid(
                f'Cannot change the instance type of variant "{name}" of endpoint "{endpoint.arn}": it is registered '
                "as a scalable target with Application Auto Scaling. Deregister it before you update the endpoint."
            )

    async def _start_update(self, endpoint: Endpoint, **changes: Any) -> None:
        with self._must_exist("endpoint", endpoint.name):
            await self._catalog.change_endpoint(endpoint.name, status="Updating", failure_reason=None, **changes)

    async def _announce(self, name: str) -> None:
        self._wake_fleet()
        await self._on_change(name)

    async def _deployable(self, config_name: str) -> Deployment:
        config = await self._get("endpoint-config", config_name)
        model = await self._get("model", config.request["ProductionVariants"][0]["ModelName"])
        return Deployment(config=without_tags(config.request), model=without_tags(model.request))

    async def _deployment(self, endpoint: Endpoint, config_name: str) -> Deployment | None:
        with contextlib.suppress(NotFound):
            return await self._catalog.deployment(endpoint, config_name)
        return None

    def _arn(self, kind: Kind, name: str) -> str:
        region, account = self._settings.region, self._settings.account
        partition = {"cn": "aws-cn", "us-gov": "aws-us-gov"}.get(region.rsplit("-", 2)[0], "aws")
        return f"arn:{partition}:sagemaker:{region}:{account}:{kind}/{name.lower()}"

    @contextlib.contextmanager
    def _must_exist(self, kind: Kind, name: str) -> Iterator[None]:
        """Turn the catalog's NotFound into AWS's error."""
        try:
            yield
        except NotFound:
            raise invalid(f'Could not find {_NOUNS[kind]} "{self._arn(kind, name)}".') from None


def _in_progress(endpoint: Endpoint) -> AwsError:
    # AWS says "update" of deletions, too.
    return invalid(f'Cannot update in-progress endpoint "{endpoint.arn}".')
