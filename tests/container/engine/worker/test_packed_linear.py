from __future__ import annotations

import pytest
import torch

from container.engine.worker.packed_linear import PackedLinear, can_pack, pack_linears, watched_weights

CPU = torch.device("cpu")
needs_packing = pytest.mark.skipif(not can_pack(CPU, torch.float32), reason="no oneDNN for this processor")


@needs_packing
@pytest.mark.parametrize("shape", [(1, 24), (7, 24), (1, 33, 24), (300, 24)])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_layer_equals_plain_one(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(24, 40, bias=bias)
    inputs = torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(PackedLinear(linear)(inputs), linear(inputs), atol=1e-5, rtol=1e-5)


@needs_packing
def test_linear_layers_packed_and_tied_weights_kept() -> None:
    model = torch.nn.ModuleDict({"embedding": torch.nn.Embedding(40, 24), "head": torch.nn.Linear(24, 40, bias=False)})
    model["head"].weight = model["embedding"].weight
    pack_linears(model)
    assert isinstance(model["head"], PackedLinear)
    assert [name for name, _ in model.named_parameters()] == ["embedding.weight"]


def test_only_float32_on_a_cpu_is_packed() -> None:
    assert not can_pack(CPU, torch.bfloat16)
    assert not can_pack(torch.device("cuda"), torch.float32)


class Mixer(torch.nn.Module):
    """Uses one layer as such, and reads the weight of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.step = torch.nn.Linear(24, 24), torch.nn.Linear(24, 24)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(inputs) @ self.step.weight
        return out


@needs_packing
def test_layer_read_by_weight_stays_plain() -> None:
    model = torch.nn.ModuleList([Mixer(), Mixer()])
    inputs = torch.randn(3, 24)
    with torch.no_grad(), watched_weights(model) as read:
        expected = model[0](inputs)  # the second one is not used: it has its layers in the same places
    pack_linears(model, except_for=read)
    assert read == {(Mixer, "step")}
    assert [type(layer) for mixer in model for layer in mixer.children()] == [PackedLinear, torch.nn.Linear] * 2
    with torch.no_grad():
        torch.testing.assert_close(model[0](inputs), expected, atol=1e-5, rtol=1e-5)
