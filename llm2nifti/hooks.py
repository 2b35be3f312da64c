"""How is a named module's tensor read or edited, leaving nothing behind?

One mechanism serves both: a callback gets each tensor as the model computes it; what it returns,
if anything, takes the tensor's place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

Callback = Callable[["Point", torch.Tensor], torch.Tensor | None]


class NoSuchModuleError(LookupError):
    """The model has no module of this name."""


class Point(NamedTuple):
    """A tensor of the model: a module's output, or its first input."""

    module: str
    where: str = "output"


@contextmanager
def tap(model: nn.Module, points: Iterable[Point], callback: Callback) -> Iterator[None]:
    """Call back with every tensor that passes the given points.

    Parameters
    ----------
    model : torch.nn.Module
        Any model; it is neither wrapped nor changed.
    points : iterable of Point
        Where to look. All names are resolved before the first hook is set.
    callback : callable
        ``callback(point, tensor)`` gets the live tensor: copy what is kept, because some models
        add to it in place afterwards. Returning a tensor replaces it; None leaves it alone.

    Raises
    ------
    NoSuchModuleError
        If a name does not exist; no hook is left behind.

    Examples
    --------
    >>> seen = []
    >>> layer = nn.Sequential(nn.Linear(2, 3))
    >>> with tap(layer, [Point("0")], lambda point, x: seen.append(x.shape)):
    ...     _ = layer(torch.zeros(1, 2))
    >>> seen
    [torch.Size([1, 3])]
    """
    resolved = [(point, resolve(model, point.module)) for point in points]
    wrong = [point for point, _ in resolved if point.where not in ("input", "output")]
    if wrong:
        raise ValueError(f"{wrong[0].where!r} of {wrong[0].module!r}: use input or output")
    with ExitStack() as stack:
        for point, module in resolved:
            if point.where == "input":
                hook = partial(_edit_input, point, callback)
                handle = module.register_forward_pre_hook(hook, with_kwargs=True)
            else:
                handle = module.register_forward_hook(partial(_edit_output, point, callback))
            stack.callback(handle.remove)
        yield


def resolve(model: nn.Module, name: str) -> nn.Module:
    """Module of this dotted name, or a NoSuchModuleError with near misses."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        near = get_close_matches(name, dict(model.named_modules()), n=3, cutoff=0.4)
    raise NoSuchModuleError(f"no module {name!r} in this model; near: {', '.join(near) or 'none'}")


def first_tensor(value: Any) -> tuple[torch.Tensor | None, Callable[[torch.Tensor], Any]]:
    """First tensor of a module's input or output, and how to put another in its place.

    Outputs are tensors, tuples (possibly holding None) or mappings.
    """
    if isinstance(value, torch.Tensor):
        return value, lambda new: new
    items: Any = ()
    if isinstance(value, (tuple, list)):
        items = enumerate(value)
    elif isinstance(value, dict):
        items = value.items()
    for key, item in items:
        if isinstance(item, torch.Tensor):
            return item, partial(_with_item, value, key)
    return None, lambda new: value


def _with_item(container: Any, key: Any, new: torch.Tensor) -> Any:
    """Container of the same type with another item; named tuples take items one by one."""
    if isinstance(container, dict):
        return type(container)({**container, key: new})
    items = [*container[:key], new, *container[key + 1 :]]
    return type(container)(*items) if hasattr(container, "_fields") else type(container)(items)


def _edit_output(point: Point, callback: Callback, _module: Any, _args: Any, output: Any) -> Any:
    """Forward hook: the callback gets the output's tensor."""
    tensor, replace = first_tensor(output)
    new = None if tensor is None else callback(point, tensor)
    return None if new is None else replace(new)


def _edit_input(point: Point, callback: Callback, module: Any, args: Any, kwargs: Any) -> Any:
    """Forward pre-hook: the callback gets the first input, positional or by name."""
    is_positional = first_tensor(args)[0] is not None
    new = _edit_output(point, callback, module, args, args if is_positional else kwargs)
    if new is None:
        return None
    return (new, kwargs) if is_positional else (args, new)
