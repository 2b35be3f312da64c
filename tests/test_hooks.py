"""Does a tap read and edit tensors of the user's own model, and leave nothing behind?"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llm2nifti.hooks import NoSuchModuleError, Point, resolve, tap

X = torch.arange(6, dtype=torch.float32).reshape(2, 3) - 2.5


class Wrapped(nn.Module):
    """Twice its input, inside the container that ``wrap`` makes."""

    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(2 * x)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def linear(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return x @ layer.weight.T + layer.bias


def n_hooks(net: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


def ignore(_point: Point, _tensor: torch.Tensor) -> None:
    """Leave every tensor alone."""


def test_outputs_and_inputs_are_read_as_computed():
    net, seen = model(), {}
    points = [Point("0"), Point("2", "input"), Point("2"), Point("")]
    with tap(net, points, lambda point, x: seen.update({point: x.clone()})):
        net(X)
    hidden = linear(net[0], X)
    expected = [hidden, hidden.clamp(min=0), linear(net[2], hidden.clamp(min=0))]
    for point, tensor in zip(points, [*expected, expected[-1]], strict=True):
        torch.testing.assert_close(seen[point], tensor)


@pytest.mark.parametrize("point", [Point("0"), Point("1", "input")])
def test_edited_tensor_is_what_the_rest_of_the_model_gets(point):
    net = model()
    with tap(net, [point], lambda _, x: -3 * x):
        edited = net(X)
    torch.testing.assert_close(edited, linear(net[2], (-3 * linear(net[0], X)).clamp(min=0)))


def test_tuple_keeps_its_other_items():
    for wrap, where in ((lambda x: (None, x, "cache", x), 1), (lambda x: [x, None], 0)):
        net, seen = nn.Sequential(Wrapped(wrap)), []
        with tap(net, [Point("0")], lambda _, x, seen=seen: seen.append(x) or x + 1):
            edited = net(X)
        whole = net(X)
        torch.testing.assert_close(seen[0], 2 * X)
        torch.testing.assert_close(edited[where], 2 * X + 1)
        assert type(edited) is type(whole)
        assert len(edited) == len(whole)
        others = [i for i in range(len(whole)) if i != where]
        assert all(str(edited[i]) == str(whole[i]) for i in others)


def test_mapping_keeps_its_other_keys():
    net = nn.Sequential(Wrapped(lambda x: {"loss": None, "hidden": x, "logits": 5 * x}))
    with tap(net, [Point("0")], lambda _, x: x + 1):
        edited = net(X)
    assert list(edited) == ["loss", "hidden", "logits"]
    assert edited["loss"] is None
    torch.testing.assert_close(edited["hidden"], 2 * X + 1)
    torch.testing.assert_close(edited["logits"], 10 * X)


def test_output_without_a_tensor_passes_untouched():
    net, seen = nn.Sequential(Wrapped(lambda _: (None, "text"))), []
    with tap(net, [Point("0")], lambda _, x: seen.append(x)):
        assert net(X) == (None, "text")
    assert seen == []


def test_returning_none_leaves_values_bit_identical():
    net = model()
    with tap(net, [Point(n, w) for n in "012" for w in ("output", "input")], ignore):
        watched = net(X)
    assert torch.equal(watched, net(X))


def test_nothing_is_left_after_the_block_or_an_exception():
    net = model()
    points = [Point("0"), Point("1", "input"), Point("0")]
    with tap(net, points, ignore):
        assert n_hooks(net) == len(points)
    assert n_hooks(net) == 0
    with pytest.raises(ZeroDivisionError), tap(net, points, lambda *_: 1 / 0):
        net(X)
    assert n_hooks(net) == 0


def test_wrong_name_lists_near_misses_and_leaves_nothing():
    net = nn.ModuleDict({"attention": nn.ModuleDict({"query": nn.Linear(3, 3)}), "mlp": nn.ReLU()})
    points = [Point("mlp"), Point("attention.query", "input"), Point("attention.qeury")]
    with pytest.raises(NoSuchModuleError, match=r"'attention\.qeury'.*near: attention\.query"):
        tap(net, points, ignore).__enter__()
    assert n_hooks(net) == 0
    with pytest.raises(NoSuchModuleError, match="none"):
        resolve(net, "zzzz")


def test_inner_tap_ends_before_the_outer_one():
    net = model()
    with tap(net, [Point("0")], lambda _, x: x + 1):
        with tap(net, [Point("0")], lambda _, x: 2 * x):
            both = net(X)
        outer = net(X)
    hidden = linear(net[0], X)
    torch.testing.assert_close(both, linear(net[2], (2 * (hidden + 1)).clamp(min=0)))
    torch.testing.assert_close(outer, linear(net[2], (hidden + 1).clamp(min=0)))
    torch.testing.assert_close(net(X), linear(net[2], hidden.clamp(min=0)))


def test_gradients_flow_through_an_edit():
    net, x = model(), X.clone().requires_grad_()
    with tap(net, [Point("2")], lambda _, x: 10 * x):
        net(x).sum().backward()
    edited, x.grad = x.grad.clone(), None
    net(x).sum().backward()
    torch.testing.assert_close(edited, 10 * x.grad)


def test_inputs_passed_by_name_are_read_and_edited():
    class Caller(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(2, 2)

        def forward(self, x):
            return self.lin(input=x)

    model, x = Caller(), torch.ones(1, 2)
    with tap(model, [Point("lin", "input")], lambda _point, tensor: 0 * tensor):
        assert torch.equal(model(x)[0], model.lin.bias)


def test_neither_input_nor_output_is_refused():
    with (
        pytest.raises(ValueError, match="'inptu'"),
        tap(nn.Sequential(nn.Linear(1, 1)), [Point("0", "inptu")], print),
    ):
        pass
