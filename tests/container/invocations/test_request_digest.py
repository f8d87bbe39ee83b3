"""What makes two requests the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from container.dialects.document import RequestHead, Route
from container.invocations.request_digest import Fingerprint, model_identity

JSON = "application/json"


def digest(
    body: bytes = b"{}",
    *,
    identity: str = "a model",
    route: Route = "invocations",
    content_type: str | None = JSON,
    attributes: str | None = None,
) -> str:
    fingerprint = Fingerprint(identity, RequestHead.parse(route, content_type, attributes))
    fingerprint.add(body)
    return fingerprint.hexdigest()


def test_the_same_is_the_same_in_whatever_pieces_it_comes() -> None:
    fingerprint = Fingerprint("a model", RequestHead.parse("invocations", JSON, None))
    for byte in b'{"inputs": "a"}':
        fingerprint.add(bytes([byte]))
    assert fingerprint.hexdigest() == digest(b'{"inputs": "a"}')


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
def test_what_decides_the_output_is_in_it(other: str) -> None:
    assert other != digest()


def test_what_decides_nothing_is_not() -> None:
    assert digest(content_type="Application/JSON; charset=utf-8") == digest()
    assert digest(attributes="job=a;timeout=5;trace=abc") == digest(attributes="job=b;max_new_tokens=5")


def test_of_a_text_the_parameters_in_the_attributes_are() -> None:
    def text(attributes: str) -> str:
        return digest(content_type="text/plain", attributes=attributes)

    assert text("job=a;timeout=5;trace=abc;max_new_tokens=5") == text("max_new_tokens=5;job=b")
    assert text("max_new_tokens=5") != text("max_new_tokens=6")
    assert text("stop=a;stop=b") != text("stop=a")


def test_a_models_identity_is_its_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(bytes(1000))
    one, two = tmp_path / "one", tmp_path / "two"
    assert model_identity(str(one)) == model_identity(str(two))
    (one / ".cache").write_text("of no meaning")
    assert model_identity(str(one)) == model_identity(str(two))
    (one / "model.safetensors").write_bytes(bytes(999) + b"a")
    assert model_identity(str(one)) != model_identity(str(two))


@pytest.mark.parametrize("name", ["first", "second", "last"])
def test_of_large_weights_every_tensor_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("container.invocations.request_digest._WHOLE_BYTES", 1 << 10)
    tensors = {"first": torch.zeros(100_000), "second": torch.zeros(3), "last": torch.zeros(50_000)}
    save_file(tensors, tmp_path / "model.safetensors")
    before = model_identity(str(tmp_path))
    save_file(tensors | {name: tensors[name] + 1}, tmp_path / "model.safetensors")
    assert model_identity(str(tmp_path)) != before


def test_of_other_large_files_pieces_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("container.invocations.request_digest._WHOLE_BYTES", 1 << 20)
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(4 << 20))
    before = model_identity(str(tmp_path))
    path.write_bytes(bytes((4 << 20) - 1) + b"a")
    assert model_identity(str(tmp_path)) != before
    path.write_bytes(bytes((4 << 20) + 1))
    assert model_identity(str(tmp_path)) != before
