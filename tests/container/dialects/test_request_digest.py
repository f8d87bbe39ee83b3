"""What makes two requests the same."""

from __future__ import annotations

import pytest

from container.dialects.document import RequestDigest, RequestHead, Route

JSON = "application/json"


def digest(
    body: bytes = b"{}",
    *,
    identity: str = "a model",
    route: Route = "invocations",
    content_type: str | None = JSON,
    attributes: str | None = None,
) -> str:
    request = RequestDigest(identity, RequestHead.parse(route, content_type, attributes))
    request.add(body)
    return request.hexdigest()


def test_digest_ignores_how_body_is_cut() -> None:
    request = RequestDigest("a model", RequestHead.parse("invocations", JSON, None))
    for byte in b'{"inputs": "a"}':
        request.add(bytes([byte]))
    assert request.hexdigest() == digest(b'{"inputs": "a"}')


@pytest.mark.parametrize(
    "other",
    [
        digest(b"{} "),
        digest(identity="another"),
        digest(route="chat"),
        digest(content_type="text/plain"),
        digest(identity="a modelinvocations"),
    ],
)
def test_digest_covers_what_decides_output(other: str) -> None:
    assert other != digest()


def test_digest_ignores_what_decides_nothing() -> None:
    assert digest(content_type="Application/JSON; charset=utf-8") == digest()
    assert digest(attributes="job=a;timeout=5;trace=abc") == digest(attributes="job=b;max_new_tokens=5")


def test_digest_of_text_covers_its_attributes() -> None:
    def text(attributes: str) -> str:
        return digest(content_type="text/plain", attributes=attributes)

    assert text("job=a;timeout=5;trace=abc;max_new_tokens=5") == text("max_new_tokens=5;job=b")
    assert text("max_new_tokens=5") != text("max_new_tokens=6")
    assert text("stop=a;stop=b") != text("stop=a")
