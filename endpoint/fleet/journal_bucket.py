"""The journal of Longhaul's containers: a place in S3 for each variant, which outlives its instances.

Every container is told of it, as nothing but Longhaul reads LONGHAUL_CHECKPOINT_URI. A model's Environment that sets
it has the last word, and a container without AWS (EnableNetworkIsolation) is told nothing.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from endpoint.backend.clients import Clients
from endpoint.settings import Settings
from endpoint.state.catalog import Deployment

VARIABLE = "LONGHAUL_CHECKPOINT_URI"

_LOG = logging.getLogger(__name__)

_MAKE_S = 5.0
"""A backend that hangs keeps no container from its start: its journal heals when its bucket is there."""
_THERE_ALREADY = ("BucketAlreadyOwnedByYou", "BucketAlreadyExists")


def uri(settings: Settings, deployment: Deployment, endpoint: str) -> str | None:
    """None where it is not ours to say."""
    if deployment.model.get("EnableNetworkIsolation") or VARIABLE in deployment.container.get("Environment", {}):
        return None
    return f"s3://{_bucket(settings)}/{endpoint}/{deployment.variant['VariantName']}"


async def make_bucket(settings: Settings, backend: Clients) -> None:
    """If it isn't there. Never raises."""
    bucket = _bucket(settings)
    try:
        async with asyncio.timeout(_MAKE_S):
            await asyncio.to_thread(_make, backend, bucket, settings.region)
    except (BotoCoreError, ClientError, OSError) as error:  # a TimeoutError is an OSError
        _LOG.warning("The bucket %s for journals could not be made: %s", bucket, str(error) or type(error).__name__)


def _bucket(settings: Settings) -> str:
    """Named as SageMaker names its own default bucket."""
    return f"longhaul-checkpoints-{settings.region}-{settings.account}"


def _make(backend: Clients, bucket: str, region: str) -> None:
    where: dict[str, Any] = {}
    if region != "us-east-1":  # which S3 takes no constraint for
        where = {"CreateBucketConfiguration": {"LocationConstraint": region}}
    try:
        backend.client("s3").create_bucket(Bucket=bucket, **where)
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") not in _THERE_ALREADY:
            raise
