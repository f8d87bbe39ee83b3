"""Reads the manifest of a tag by the registry's own HTTP API. It pushes nothing; Docker does."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from typing import IO

from pushing import PushError, one_line

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
MANIFESTS = (
    DOCKER_MANIFEST,
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
)
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    digest: str
    media_type: str
    config_digest: str | None

    def is_of(self, image_id: str) -> bool:
        """Return whether the image is this one. An engine names an image by its configuration's digest, or
        (containerd's store) by its manifest's."""
        return image_id in (self.digest, self.config_digest)


class Registry:
    def __init__(self, host: str, basic_credentials: str) -> None:
        """`host` may have a port. `basic_credentials` are in base64, as HTTP wants them."""
        self.host = host
        self._headers = {"Authorization": f"Basic {basic_credentials}", "Accept": ", ".join(MANIFESTS)}
        handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
        if _is_loopback(host):  # Docker uses neither TLS nor a proxy there
            self._scheme = "http"
            handlers.append(urllib.request.ProxyHandler({}))
        else:
            self._scheme = "https"
            bundle = os.environ.get("AWS_CA_BUNDLE") or None
            handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=bundle)))
        self._opener = urllib.request.build_opener(*handlers)

    def manifest(self, repository: str, tag: str) -> Manifest | None:
        """Read the tag's manifest; None if there is no such tag. Raise PushError if it can't be read."""
        url = f"{self._scheme}://{self.host}/v2/{repository}/manifests/{tag}"
        try:
            with self._opener.open(urllib.request.Request(url, headers=self._headers), timeout=TIMEOUT_S) as answer:
                body, media_type = answer.read(), answer.headers.get_content_type()
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 404:
                    return None
                raise PushError(f"the registry {self.host} didn't show {tag}: {_refusal(error)}") from error
        except (OSError, HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise PushError(f"can't reach the registry {self.host}: {one_line(reason)}") from error
        return _parse(body, media_type)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, which would take the credentials to another host."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


def _parse(body: bytes, media_type: str) -> Manifest:
    try:
        config = json.loads(body).get("config") or {}
    except (ValueError, AttributeError) as error:
        raise PushError("the registry answered with something other than a manifest") from error
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    return Manifest(digest=digest, media_type=media_type, config_digest=config.get("digest"))


def _refusal(error: urllib.error.HTTPError) -> str:
    try:
        reason = json.loads(error.read())["errors"][0]["message"]
    except (OSError, HTTPException, ValueError, LookupError, TypeError):
        reason = error.reason
    permission = "; ecr:BatchGetImage must be allowed" if error.code == 403 else ""
    return f"{one_line(reason)} ({error.code}){permission}"


def _is_loopback(host: str) -> bool:
    name = host.partition(":")[0]
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
