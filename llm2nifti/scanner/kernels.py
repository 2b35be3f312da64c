"""How does torch compute while a model is scanned? With so many threads, products by oneDNN.

On a CPU in float32, torch gives products to MKL, which leaves half of the vector unit of other
makers' CPUs unused; oneDNN comes with torch and uses it. Both round to float32: values differ in
the last digits, as they do between batch sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial

import torch
from torch import nn

from llm2nifti.scanner.stimulus import ScanError

TOLERANCE = 1e-5  # relative; both are within about 4e-7 of the exact product


@cache
def has_onednn() -> bool:
    """Whether torch's own oneDNN kernel is there and gives the products that torch gives."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(n, generator=generator) for n in ((2, 5, 24), (16, 24), (16,)))
    expected = nn.functional.linear(x, weight, bias)
    try:
        product = _product(x, weight, bias)
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        return False  # a torch without it, or with another signature
    error = (product - expected).norm() / expected.norm()
    return product.shape == expected.shape and bool(error < TOLERANCE)


def name_for(module: nn.Module) -> str:
    """Library that computes the linear layers of a model in a scan, for the sidecar."""
    return "oneDNN" if _layers(module) else "torch's default"


@contextmanager
def fast_linear(module: nn.Module) -> Iterator[None]:
    """Compute the linear layers of a model with oneDNN, and put them back.

    Layers in another data type, on another device or with a forward of their own are left alone.
    """
    with ExitStack() as stack:
        for layer in _layers(module):
            stack.callback(vars(layer).pop, "forward")
            layer.forward = partial(_linear, layer)  # type: ignore[method-assign]
        yield


def _layers(module: nn.Module) -> list[nn.Linear]:
    """Plain linear layers in float32 on the CPU, where torch has the kernel."""
    return [
        layer
        for layer in (module.modules() if has_onednn() else ())
        if type(layer) is nn.Linear
        and "forward" not in vars(layer)  # accelerate brings one that fetches the weights
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype == torch.float32
    ]


def _linear(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """Output of a linear layer."""
    if x.dtype != torch.float32 or not x.numel():
        return nn.functional.linear(x, layer.weight, layer.bias)
    return _product(x.contiguous(), layer.weight.detach(), layer.bias)


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``x @ weight.T + bias`` by the kernel that torch's compiler uses on CPUs."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def check_threads(number: int | None) -> None:
    """Raise ScanError if a number of threads is below 1."""
    if number is not None and number < 1:
        raise ScanError(f"threads is {number}; it must be at least 1")


@contextmanager
def torch_threads(number: int | None) -> Iterator[None]:
    """Set the number of threads that torch computes with, and put it back; None changes nothing."""
    check_threads(number)
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        if number is not None:
            torch.set_num_threads(before)
