from __future__ import annotations

from ipaddress import IPv4Network

import pytest

from endpoint.origin_guard import OriginGuard

GUARD = OriginGuard("127.0.0.1", networks={"172.20.0.1": IPv4Network("172.20.0.0/16")})


@pytest.mark.parametrize(
    ("address", "peer", "host", "is_refused"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1:4566", False),
        ("172.20.0.1", "172.20.0.2", "172.20.0.1:4566", False),
        ("172.20.0.1", "172.17.0.2", "172.20.0.1:4566", True),  # a container of another network
        ("172.20.0.1", "192.168.1.9", "172.20.0.1:4566", True),  # another machine that routes through this one
        ("172.20.0.1", "172.20.0.2", "evil.example", True),
    ],
)
def test_bridge_answers_its_own_containers_only(address: str, peer: str, host: str, is_refused: bool) -> None:
    assert (GUARD.rejection_reason({"host": host}, address, peer) is not None) is is_refused
