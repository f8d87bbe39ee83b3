"""Keeps web pages out: a browser must not reach what listens on this machine for its developer alone.

A page can send requests to 127.0.0.1, which Origin and Sec-Fetch-Site reveal. It can also give its own name that
address to read the responses, which Host reveals. The address of a bridge to containers is for those alone, as other
machines may find a way to it. Knows headers and addresses only, no services.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Network, ip_address
from urllib.parse import urlsplit

_LOCAL = frozenset({"127.0.0.1", "localhost", "[::1]"})


class OriginGuard:
    def __init__(self, *hosts: str, networks: Mapping[str, IPv4Network] | None = None) -> None:
        """Allow `hosts` besides this machine's own names. `networks` has who may send requests to which address."""
        self._networks = dict(networks or {})
        hosts = (*hosts, *self._networks)
        self._hosts = _LOCAL | {f"[{host}]" if ":" in host else host.lower() for host in hosts}

    def rejection_reason(self, headers: Mapping[str, str], address: str = "", peer: str = "") -> str | None:
        """Return why a request is refused, or None. Header names are lowercase.

        It came to the `address` of this machine from the address `peer`.
        """
        network = self._networks.get(address)
        if network is not None and ip_address(peer) not in network:
            return f"Requests from {peer} are refused at {address}"
        host = headers.get("host", "")
        name = host_name(host)
        if name not in self._hosts and not name.endswith(".localhost"):  # `bucket.localhost` is a bucket of S3
            return f"Host {host!r} is not a name of this endpoint"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return f"Requests of pages of another origin ({origin!r}) are refused"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return "Requests of pages of another site are refused"
        return None


def host_name(host: str) -> str:
    """Return the host of a Host header, in lower case and without its port; an IPv6 address keeps its brackets."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()
