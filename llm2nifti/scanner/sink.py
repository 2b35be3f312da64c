"""Where do the values of a batch go? From the hooks to the runs that they belong to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch

from llm2nifti.geometry import ModelBrain
from llm2nifti.hooks import Callback, Point
from llm2nifti.models import LoadedModel
from llm2nifti.models.points import parts, tapped
from llm2nifti.scanner.stimulus import ScanError


class Sink:
    """Values of one batch on their way from the hooks to the recording.

    On the CPU, frames are written straight into `outs`, (n_volumes, n_units) float32 of each run
    of the batch. Where `n_summed` frames add up to one volume, their mean is kept, summed up on
    the device.
    """

    def __init__(
        self, model: LoadedModel, brain: ModelBrain, outs: Sequence[np.ndarray], n_summed: int = 1
    ) -> None:
        self._model, self._outs, self._n_summed = model, outs, n_summed
        self._first = np.cumsum([0, *map(len, outs)]).tolist()
        self._targets = [torch.from_numpy(out) for out in outs]
        self._is_staged = model.device.type != "cpu" or n_summed > 1
        if self._is_staged:
            shape = (self._first[-1], brain.n_units)
            self._targets = [torch.zeros(shape, dtype=torch.float32, device=model.device)]
        self._parts = {
            point: [
                (units, index if index is None else index.to(model.device)) for units, index in held
            ]
            for point, held in parts(model, brain).items()
        }
        self._unseen = set(self._parts)

    def listening(self, stream: Point, callback: Callback) -> AbstractContextManager[None]:
        """Call back with the tensors of all sites, and with the stream's end."""
        return tapped(self._model, list(dict.fromkeys([*self._parts, stream])), callback)

    def put(self, point: Point, rows: slice | torch.Tensor, values: torch.Tensor) -> None:
        """Store (n_rows, n_module_units) values of a point in rows of the batch, or add them."""
        self._unseen.discard(point)
        for units, index in self._parts.get(point, ()):
            part = values if index is None else values[:, index.to(values.device)]
            if len(self._targets) > 1:
                self._spread(rows, units, part)
            elif self._n_summed > 1:
                self._targets[0][rows, units] += part.to(self._targets[0])
            else:
                self._targets[0][rows, units] = part.to(self._targets[0])

    def _spread(self, rows: slice | torch.Tensor, units: slice, part: torch.Tensor) -> None:
        """Store rows of a batch in the runs that they belong to."""
        if isinstance(rows, slice):  # to the end of the batch
            first, _, step = rows.indices(self._first[-1])
            n_done = 0
            for target, start in zip(self._targets, self._first, strict=False):
                into = target[(first - start) % step :: step, units]
                into[:] = part[n_done : n_done + len(into)]
                n_done += len(into)
            return
        for target, start in zip(self._targets, self._first, strict=False):
            is_here = (rows >= start) & (rows < start + len(target))
            target[rows[is_here] - start, units] = part[is_here].to(target)

    def finish(self) -> Callable[[], None]:
        """Begin to bring what is on the device to the recording; what is returned ends it.

        From a GPU, values are copied into pinned memory beside what it computes next.
        """
        if self._unseen:  # its values would be zeros that nothing gave
            name = min(self._unseen).module
            raise ScanError(f"module {name!r} was not called in this mode; do not record it")
        if not self._is_staged:
            return lambda: None
        staged = self._targets[0]
        if self._n_summed > 1:
            staged /= self._n_summed
        host, wait = _to_host(staged)

        def land() -> None:
            wait()
            for out, start in zip(self._outs, self._first, strict=False):
                out[:] = host[start : start + len(out)].numpy()

        return land


def _to_host(values: torch.Tensor) -> tuple[torch.Tensor, Callable[[], object]]:
    """Memory that the values of a device will be in, and what waits until they are."""
    if values.device.type != "cuda":
        return values.cpu(), lambda: None
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    beside = torch.cuda.Stream(values.device)
    beside.wait_stream(torch.cuda.current_stream(values.device))
    with torch.cuda.stream(beside):
        host.copy_(values, non_blocking=True)
        values.record_stream(beside)  # its memory is not given away before
        landed = torch.cuda.Event()
        landed.record()
    return host, landed.synchronize
