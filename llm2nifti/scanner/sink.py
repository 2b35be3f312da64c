"""Where do a batch's activations go? Into the recording, frame by frame or reduced to means."""

from __future__ import annotations

from contextlib import AbstractContextManager

import numpy as np
import torch

from llm2nifti.geometry import ModelBrain
from llm2nifti.hooks import Callback, Point
from llm2nifti.models import LoadedModel
from llm2nifti.models.points import parts, tapped
from llm2nifti.scanner.settings import ScanError


class Sink:
    """Values of one batch on their way from the hooks to the recording.

    On the CPU, frames are written straight into `out`, (n_volumes, n_units) float32. Where
    `n_summed` frames add up to one volume, their mean is kept, summed up on the device.
    """

    def __init__(
        self, model: LoadedModel, brain: ModelBrain, out: np.ndarray, n_summed: int = 1
    ) -> None:
        self._model = model
        self._out = out
        self._n_summed = n_summed
        self.values = torch.from_numpy(out)
        if model.device.type != "cpu" or n_summed > 1:
            self.values = torch.zeros(out.shape, dtype=torch.float32, device=model.device)
        self._parts = parts(model, brain)
        self._unseen = set(self._parts)

    def listening(self, stream: Point, callback: Callback) -> AbstractContextManager[None]:
        """Call back with the tensors of all sites, and with the stream's end."""
        return tapped(self._model, list(dict.fromkeys([*self._parts, stream])), callback)

    def put(self, point: Point, rows: slice | torch.Tensor, values: torch.Tensor) -> None:
        """Store (n_rows, n_module_units) values of a point in rows of the batch, or add them."""
        self._unseen.discard(point)
        for units, index in self._parts.get(point, ()):
            part = values if index is None else values[:, index.to(values.device)]
            if self._n_summed > 1:
                self.values[rows, units] += part.to(self.values)
            else:
                self.values[rows, units] = part.to(self.values.device, torch.float32)

    def finish(self) -> None:
        """Bring what is on the device to the recording."""
        if self._unseen:  # its values would be zeros that nothing gave
            name = min(self._unseen).module
            raise ScanError(f"module {name!r} was not called in this mode; do not record it")
        if self._n_summed > 1:
            self.values /= self._n_summed
        values = self.values.numpy(force=True)
        if not np.shares_memory(self._out, values):
            self._out[:] = values
