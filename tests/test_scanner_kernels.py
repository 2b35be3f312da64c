"""Products by oneDNN: the same to rounding, and nothing is left behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llm2nifti.scanner import kernels


def exact(layer, x):
    y = x.double() @ layer.weight.double().T
    return y if layer.bias is None else y + layer.bias.double()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(64, 576), (1, 1, 576), (3, 7, 576)])
def test_products_are_those_of_float64_to_rounding(shape, bias):
    layer, x = nn.Linear(576, 192, bias=bias), torch.randn(shape)
    with torch.no_grad(), kernels.fast_linear(layer):
        assert "forward" in vars(layer)
        found = layer(x)
    reference = exact(layer, x)
    assert found.dtype == torch.float32
    assert (found - reference).norm() / reference.norm() < 2e-6


def test_inputs_that_are_views_are_read_right():
    layer, x = nn.Linear(8, 4), torch.randn(8, 6, 5)[:, ::2, 1].T
    with torch.no_grad(), kernels.fast_linear(layer):
        torch.testing.assert_close(layer(x).double(), exact(layer, x), rtol=1e-4, atol=1e-5)
        assert layer(torch.zeros(0, 8)).shape == (0, 4)


def test_layers_are_put_back_also_after_an_error():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.raises(KeyError), kernels.fast_linear(model):
        raise KeyError
    assert not any("forward" in vars(layer) for layer in model)


def test_other_types_and_layers_with_a_forward_of_their_own_are_left_alone():
    half, own = nn.Linear(4, 4).bfloat16(), nn.Linear(4, 4)
    own.forward = lambda x: x + 1
    with kernels.fast_linear(nn.Sequential(half, own)):
        assert "forward" not in vars(half)
        assert own(torch.zeros(4)).tolist() == [1] * 4
    assert own(torch.zeros(4)).tolist() == [1] * 4


def test_hooks_see_what_the_kernel_puts_out():
    layer, seen = nn.Linear(4, 2), []
    handle = layer.register_forward_hook(lambda _m, _a, out: seen.append(out))
    with torch.no_grad(), kernels.fast_linear(layer):
        out = layer(torch.ones(3, 4))
    handle.remove()
    assert torch.equal(seen[0], out)


def test_without_the_kernel_torch_does_it(monkeypatch):
    monkeypatch.setattr(kernels, "has_onednn", lambda: False)
    layer = nn.Linear(4, 4)
    with kernels.fast_linear(layer):
        assert "forward" not in vars(layer)
    assert kernels.name_for(layer) == "torch's default"


def test_looking_for_the_kernel_draws_no_random_numbers():
    kernels.has_onednn.cache_clear()
    before = torch.random.get_rng_state()
    assert isinstance(kernels.has_onednn(), bool)
    assert torch.equal(before, torch.random.get_rng_state())
