"""How often does a test find something where nothing is there? Rates of a null experiment."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """What one null experiment finds; rates are shares of units, means over labellings."""

    n_relabellings: int = 0
    below_05: float | None = None
    below_05_sd: float | None = None  #: over labellings
    below_001: float | None = None
    any_fdr: float | None = None  #: share of labellings in which a unit passes FDR .05
    not_possible: str | None = None  #: why there are no rates
    n_on: int | None = None  #: trials of a pseudo-task
    n_off: int | None = None  #: and of its control
    rates_below_05: list[float] | None = None  #: of each pseudo-task
