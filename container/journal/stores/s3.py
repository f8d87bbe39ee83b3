"""A store under a prefix of a bucket, Amazon's or any other that speaks S3 and honours `If-None-Match: *`.

Needs s3:GetObject, s3:PutObject and s3:DeleteObject on the objects and s3:ListBucket on the bucket; with a KMS key
kms:GenerateDataKey and kms:Decrypt on it.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from container.journal.stores.store import StoreError, validate_folder, validate_key

_URI = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>[A-Za-z0-9!_.*'()/-]*))?")
_AMAZON_DOMAINS = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")
_TRIES = 3
_RETRY_PAUSE_S = 0.2
_MAX_KEYS_PER_DELETE = 1000
_NOT_FOUND = ("404", "NoSuchKey")

_ADVICE = {
    "NoSuchBucket": "there is no such bucket: make it in this region, or name another",
    "AccessDenied": "the role needs s3:GetObject, s3:PutObject and s3:DeleteObject on its objects and s3:ListBucket on"
    " it, and with a KMS key kms:GenerateDataKey and kms:Decrypt",
    "PermanentRedirect": "the bucket is in another region: set AWS_REGION to it",
    "NotImplemented": "this S3 does not know conditional writes (If-None-Match), which the journal needs",
}
_ADVICE["403"] = _ADVICE["AccessDenied"]  # to HEAD, whose answer has no body
_ADVICE["301"] = _ADVICE["PermanentRedirect"]


class S3Store:
    """Keeps each object under its key. Credentials, profiles and endpoints are found as boto3 does."""

    is_local = False

    def __init__(
        self, uri: str, *, kms_key: str | None = None, connect_timeout_s: float = 3, read_timeout_s: float = 10
    ) -> None:
        """Make the client. Raises ValueError for a URI or an environment with which nothing can ever be stored."""
        match = _URI.fullmatch(uri)
        prefix = match["prefix"].strip("/") if match and match["prefix"] else ""
        if match is None or any(part in ("", ".", "..") for part in prefix.split("/") if prefix):
            raise ValueError(f"expected s3://bucket/prefix, not {uri!r}")
        self._bucket = match["bucket"]
        self._prefix = f"{prefix}/" if prefix else ""
        self._encryption = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key} if kms_key else {}
        try:
            self._client = _client(connect_timeout_s, read_timeout_s)
        except BotoCoreError as error:
            raise ValueError(f"{self.describe}: {error}") from error

    @property
    def describe(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def create(self, key: str, data: bytes) -> bool:
        name = self._prefix + validate_key(key)
        with self._raising_store_errors("write"):
            for attempt in range(_TRIES):
                try:
                    self._client.put_object(
                        Bucket=self._bucket, Key=name, Body=data, IfNoneMatch="*", **self._encryption
                    )
                    return True
                except ClientError as error:
                    if _code(error) in ("PreconditionFailed", "412"):
                        return False
                    # Another writer or deleter is at work on this very key.
                    if _code(error) != "ConditionalRequestConflict" or attempt == _TRIES - 1:
                        raise
                time.sleep(_RETRY_PAUSE_S * random.uniform(0.5, 1.5) * 2**attempt)
        raise AssertionError

    def put(self, key: str, data: bytes) -> None:
        with self._raising_store_errors("write"):
            self._client.put_object(
                Bucket=self._bucket, Key=self._prefix + validate_key(key), Body=data, **self._encryption
            )

    def get(self, key: str) -> bytes | None:
        name = self._prefix + validate_key(key)
        with self._raising_store_errors("read"):
            for attempt in range(_TRIES):
                try:
                    body = self._client.get_object(Bucket=self._bucket, Key=name)["Body"]
                except ClientError as error:
                    if _code(error) in _NOT_FOUND:
                        return None
                    raise
                try:
                    data: bytes = body.read()
                    return data
                except BotoCoreError:  # botocore tries nothing again once the body has begun
                    if attempt == _TRIES - 1:
                        raise
        raise AssertionError

    def exists(self, key: str) -> bool:
        with self._raising_store_errors("read"):
            try:
                self._client.head_object(Bucket=self._bucket, Key=self._prefix + validate_key(key))
            except ClientError as error:
                if _code(error) not in _NOT_FOUND:
                    raise
                return False
            return True

    def keys(self, prefix: str) -> list[str]:
        with self._raising_store_errors("list"):
            return sorted(self._keys(prefix))

    def folders(self, folder: str) -> list[str]:
        with self._raising_store_errors("list"):
            pages = self._pages(validate_folder(folder), Delimiter="/")
            return sorted(f["Prefix"].rsplit("/", 2)[1] for page in pages for f in page.get("CommonPrefixes", ()))

    def delete(self, prefix: str) -> None:
        with self._raising_store_errors("delete from"):
            keys = sorted(self._keys(validate_folder(prefix)))
            for first in range(0, len(keys), _MAX_KEYS_PER_DELETE):
                objects = [{"Key": self._prefix + key} for key in keys[first : first + _MAX_KEYS_PER_DELETE]]
                answer = self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": objects, "Quiet": True})
                for error in answer.get("Errors", ()):
                    raise StoreError(self._failure("delete from", error.get("Code", "unknown")))

    def _keys(self, prefix: str) -> Iterator[str]:
        for page in self._pages(prefix):
            for entry in page.get("Contents", ()):
                yield entry["Key"][len(self._prefix) :]

    def _pages(self, prefix: str, **options: str) -> Iterator[dict[str, Any]]:
        listing = self._client.get_paginator("list_objects_v2")
        yield from listing.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix, **options)

    @contextlib.contextmanager
    def _raising_store_errors(self, verb: str) -> Iterator[None]:
        # Only codes and our own words: a service's message may quote secrets.
        try:
            yield
        except ClientError as error:
            raise StoreError(self._failure(verb, _code(error))) from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise StoreError(
                f"{self.describe}: could not {verb} it: no AWS credentials: give the container a role, or set"
                " AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from error
        except BotoCoreError as error:
            raise StoreError(self._failure(verb, type(error).__name__)) from error

    def _failure(self, verb: str, code: str) -> str:
        advice = f": {_ADVICE[code]}" if code in _ADVICE else ""
        return f"{self.describe}: could not {verb} it: {code}{advice}"


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code") or "unknown")


def _client(connect_timeout_s: float, read_timeout_s: float) -> Any:
    """Make a client. Raises ValueError if it is for Amazon's own S3 and no region is set."""
    session = boto3.Session()
    # SageMaker sets AWS_REGION, which boto3 does not read.
    region = os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION") or session.region_name

    def make(addressing: str) -> Any:
        config = Config(
            connect_timeout=connect_timeout_s,
            read_timeout=read_timeout_s,
            retries={"mode": "standard", "total_max_attempts": _TRIES},
            max_pool_connections=64,
            s3={"addressing_style": addressing},
            # The journal's objects have their own checksum, and not every S3 knows the newer ones.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return session.client("s3", region_name=region or "us-east-1", config=config)

    client = make("auto")
    host = urlsplit(client.meta.endpoint_url).hostname or ""
    if host.endswith(_AMAZON_DOMAINS):
        if not region:
            client.close()
            raise ValueError("no AWS region is set: set AWS_REGION to the bucket's")
        return client
    client.close()
    return make("path")
