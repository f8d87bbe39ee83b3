"""The location of a container's model data, from its ContainerDefinition, and SageMaker's messages about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from endpoint.aws.s3_location import parse_location


class ModelDataError(Exception):
    """Raised if model data can't be laid out. Its text is the endpoint's FailureReason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """The location of a container's model data: one archive, one object as it is, or all objects under a prefix."""

    uri: str
    """The URI as the request has it, for messages."""
    bucket: str
    key: str
    kind: Literal["archive", "object", "prefix"]
    etag: str | None = None
    container: str = "container_1"
    """The container's name; SageMaker calls one without a hostname container_1."""

    @classmethod
    def of(cls, container: dict[str, Any]) -> ModelSource | None:
        """Return the source that a ContainerDefinition names, or None. Raises ModelDataError."""
        name = container.get("ContainerHostname", "container_1")
        if container.get("AdditionalModelDataSources"):
            raise ModelDataError("AdditionalModelDataSources are not supported by the local endpoint.")
        source = container.get("ModelDataSource", {}).get("S3DataSource")
        if not source:
            if not (uri := container.get("ModelDataUrl")):
                return None
            bucket, key = _parse(uri)
            return cls(uri=uri, bucket=bucket, key=key, kind="archive", container=name)
        for field in ("HubAccessConfig", "ManifestS3Uri"):
            if field in source:
                raise ModelDataError(f"S3DataSource.{field} is not supported by the local endpoint.")
        uri = source["S3Uri"]
        kinds: dict[tuple[str, str], Literal["archive", "object", "prefix"]] = {
            ("S3Object", "Gzip"): "archive",
            ("S3Object", "None"): "object",
            ("S3Prefix", "None"): "prefix",
        }
        kind = kinds.get((source["S3DataType"], source["CompressionType"]))
        if kind is None:
            raise ModelDataError("CompressionType Gzip needs S3DataType S3Object.")
        if kind == "prefix" and not uri.endswith("/"):
            raise ModelDataError(f'S3Uri "{uri}" of S3DataType S3Prefix must end with a forward slash (/).')
        bucket, key = _parse(uri, of_prefix=kind == "prefix")
        return cls(uri=uri, bucket=bucket, key=key, kind=kind, etag=source.get("ETag"), container=name)


def _parse(uri: str, *, of_prefix: bool = False) -> tuple[str, str]:
    try:
        return parse_location(uri, of_prefix=of_prefix)
    except ValueError as error:
        raise ModelDataError(f"{error}.") from error


def cannot_download(source: ModelSource, reason: str = "") -> ModelDataError:
    return ModelDataError(
        f'Failed to download model data for container "{source.container}" from URL: "{source.uri}". '
        "Please ensure that there is an object located at the URL and that the role passed to CreateModel has "
        f"permissions to download the object. {reason}".strip()
    )


def cannot_extract(source: ModelSource, reason: str) -> ModelDataError:
    return ModelDataError(
        f'Failed to extract model data archive for container "{source.container}" from URL "{source.uri}". '
        f"Please ensure that the object located at the URL is a valid tar.gz archive. {reason}".strip()
    )
