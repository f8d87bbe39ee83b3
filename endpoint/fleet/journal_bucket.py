"""The journal of Longhaul's containers: a prefix in S3 for each variant, which outlives its instances.

Every container is told of it, as nothing but Longhaul reads LONGHAUL_CHECKPOINT_URI. A model's Environment that sets
the variable has the last word, and a container without AWS (EnableNetworkIsolation) is told nothing.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from endpoint.backend.clients import Clients
from endpoint.fleet.runners.environment import JOURNAL_VARIABLE
from endpoint.settings import Settings
from endpoint.state.catalog import Deployment

_LOG = logging.getLogger(__name__)

_MAKE_TIMEOUT_S = 5.0
"""Seconds after which a container starts without its bucket: its journal heals when the bucket is there."""
_EXISTS = ("BucketAlreadyOwnedByYou", "BucketAlreadyExists")


def uri(settings: Settings, deployment: Deployment, endpoint: str) -> str | None:
    """Return the journal's URI, or None if the endpoint doesn't set it."""
    if deployment.model.get("EnableNetworkIsolation") or JOURNAL_VARIABLE in deployment.container.get(
        "Environment", {}
    ):
        return None
    return f"s3://{_bucket(settings)}/{endpoint}/{deployment.variant['VariantName']}"


async def make_bucket(settings: Settings, backend: Clients) -> None:
    """Make the bucket if it isn't there. Never raises."""
    bucket = _bucket(settings)
    options: dict[str, Any] = {"Bucket": bucket}
    if settings.region != "us-east-1":  # S3 takes no constraint for this one
        options["CreateBucketConfiguration"] = {"LocationConstraint": settings.region}
    try:
        async with asyncio.timeout(_MAKE_TIMEOUT_S):
            await asyncio.to_thread(lambda: backend.client("s3").create_bucket(**options))
    except (BotoCoreError, ClientError, OSError) as error:  # a TimeoutError is an OSError
        if not isinstance(error, ClientError) or error.response.get("Error", {}).get("Code") not in _EXISTS:
            message = str(error) or type(error).__name__
            _LOG.warning("The bucket %s for journals could not be made: %s", bucket, message)


def _bucket(settings: Settings) -> str:
    """Return a name like that of SageMaker's own default bucket."""
    return f"longhaul-checkpoints-{settings.region}-{settings.account}"
