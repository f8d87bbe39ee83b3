"""The variants of SageMaker's endpoints as Application Auto Scaling sees them: what they have, and a request for more.

Capacities are asked for by UpdateEndpointWeightsAndCapacities, as AWS does, so that a change makes the endpoint
`Updating` and is refused while another one is under way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from endpoint.autoscaling.resources import variant_of
from endpoint.state.catalog import Catalog, Endpoint, NotFound, Status

Call = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]
"""Function that calls an operation of SageMaker's control plane. Raises AwsError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A variant as it is now."""

    desired: int
    """Instances asked for last."""
    running: int
    """Instances that serve."""
    status: Status
    """Status of the endpoint."""
    failure_reason: str | None = None

    @property
    def is_scalable(self) -> bool:
        """Whether a capacity can be asked for."""
        return self.status == "InService"

    @property
    def can_become_scalable(self) -> bool:
        return self.status in ("Creating", "Updating", "InService")


class Variants:
    """Looks at variants and changes their capacity, by their resource ids: `endpoint/E/variant/V`."""

    def __init__(self, catalog: Catalog, call: Call, count_ended_busy: Callable[[str], int] = lambda _: 0) -> None:
        """`count_ended_busy` returns how many busy instances of an endpoint scale-ins have ended since the start."""
        self._catalog = catalog
        self._call = call
        self._count_ended_busy = count_ended_busy

    async def exists(self, endpoint: str, variant: str) -> bool:
        """Tell whether an endpoint has a variant, and isn't being deleted."""
        return await self._find(endpoint, variant) is not None

    async def describe(self, resource_id: str) -> Variant | None:
        """Return a variant, or None if there is none or its endpoint is being deleted."""
        endpoint = await self._find(*variant_of(resource_id))
        return None if endpoint is None else _variant(endpoint)

    async def set_desired(self, resource_id: str, capacity: int) -> None:
        """Ask for a capacity. Raises AwsError as SageMaker does."""
        endpoint, variant = variant_of(resource_id)
        change = {"VariantName": variant, "DesiredInstanceCount": capacity}
        parameters = {"EndpointName": endpoint, "DesiredWeightsAndCapacities": [change]}
        await self._call("UpdateEndpointWeightsAndCapacities", parameters)

    def count_ended_busy(self, resource_id: str) -> int:
        """Return how many instances scale-ins have ended that had requests, since this gateway's start."""
        return self._count_ended_busy(variant_of(resource_id)[0])

    async def _find(self, name: str, variant: str) -> Endpoint | None:
        try:
            endpoint = await self._catalog.endpoint(name)
            deployment = await self._catalog.deployment(endpoint, endpoint.config_name)
        except NotFound:
            return None
        is_there = deployment.variant["VariantName"] == variant and endpoint.status != "Deleting"
        return endpoint if is_there else None


def _variant(endpoint: Endpoint) -> Variant:
    return Variant(
        desired=endpoint.desired,
        running=endpoint.current,
        status=endpoint.status,
        failure_reason=endpoint.failure_reason,
    )
