"""How many threads does torch compute with? Set for a while, and put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from llm2nifti.scanner.settings import ScanError


def check_threads(number: int | None) -> None:
    """Raise ScanError if a number of threads is below 1."""
    if number is not None and number < 1:
        raise ScanError(f"threads is {number}; it must be at least 1")


@contextmanager
def torch_threads(number: int | None) -> Iterator[None]:
    """Set the number of threads that torch computes with, and put it back; None changes nothing."""
    check_threads(number)
    if number is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
