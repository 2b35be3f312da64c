"""When is it enough? Generation that ends once a network is above its threshold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import StoppingCriteria

if TYPE_CHECKING:
    from llm2nifti.monitor.watching import NetworkMonitor


class AboveThreshold(StoppingCriteria):
    """Ends each sequence whose mean score of one network, by its position, is above threshold."""

    def __init__(self, monitor: NetworkMonitor, network: int) -> None:
        self._monitor = monitor
        self._network = network

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """(n_sequences,) bool tensor: whether each one is done."""
        above = self._monitor.above()[:, self._network]
        if len(above) != len(input_ids):  # the monitor is not entered, or sees other sequences
            raise RuntimeError(
                f"the monitor has seen {len(above)} sequences and {len(input_ids)} are generated; "
                "generate inside `with monitor`"
            )
        self._monitor.end(above)
        return torch.from_numpy(above).to(input_ids.device)
