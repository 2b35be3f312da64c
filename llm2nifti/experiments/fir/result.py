"""What responses over frames say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import pandas as pd

from llm2nifti.experiments.results import Result
from llm2nifti.tell import Plot, Section, Table
from llm2nifti.tell.wording import number, percent, plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Frame:
    """One task at one frame; shares are of all units, or of those that vary for p < .05."""

    n_active: int  #: units that pass the false discovery rate
    share_active: float
    share_below_05: float  #: two-sided p below .05, uncorrected
    null_below_05: float  #: the same with shuffled labels, mean over runs and shuffles
    repeatability: float | None  #: mean r of the t maps of two runs; None of a single run


@dataclass(frozen=True, repr=False)
class FirResult(Result):
    """Responses of every task at each frame, the first being the first generated token.

    The numbers of units change when the units of a site are rotated, as those of all maps do.
    """

    file: ClassVar[str] = "fir.json"
    rank: ClassVar[int] = 9

    tasks: dict[str, list[Frame]]
    alpha: float
    n_null: int

    def tables(self) -> dict[str, pd.DataFrame]:
        """``frames``: one row a task and frame, which count from 1."""
        rows = [
            {"task": task, "frame": i, **vars(frame)}
            for task, frames in self.tasks.items()
            for i, frame in enumerate(frames, start=1)
        ]
        return {"frames": pd.DataFrame(rows)}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Share of units with p < .05 at each frame, a line a task."""
        from llm2nifti import plotting

        table = self.tables()["frames"]
        lines = {
            str(task): (100 * rows["share_below_05"]).to_numpy()
            for task, rows in table.groupby("task", sort=False)
        }
        chance = 100 * float(table["null_below_05"].mean())
        return plotting.plot_over_frames(
            lines, chance=chance, ylabel="Units with p < .05 (%)", ax=ax
        )

    def sections(self) -> list[Section]:
        """A row a task, a column a frame."""
        frames = self.tables()["frames"]
        n = int(frames["frame"].max())
        what = (
            f"Every one of the {plural(n, 'generated token')} has a model of its own, in which a "
            "prompt is one observation: the effects are those of nilearn's FIR model, and tokens "
            "of one prompt do not count as independent. With shuffled labels "
            f"{percent(float(frames['null_below_05'].mean()))} of units pass p < .05 (nominal 5 %)."
        )
        columns = {
            "Active units": ("share_active", percent),
            "p < .05": ("share_below_05", percent),
            "r between runs": ("repeatability", number),
        }
        tables = []
        for title, (name, told) in columns.items():
            rows = []
            for task, of_task in frames.groupby("task", sort=False):
                if of_task[name].notna().all():
                    cells = zip(of_task["frame"], of_task[name], strict=True)
                    rows.append({"Task": str(task), **{f"{i}": told(x) for i, x in cells}})
            if rows:
                tables.append(Table.of(f"{title} at each frame", rows))
        notes = [f"Active: false discovery rate {percent(self.alpha, 0)}, two-sided, all runs."]
        plot = Plot(
            "fir",
            self.plot,
            "Lines of the share of units with p < .05 at each generated token, by task.",
            "Share of units with p < .05 at each generated token; dashed: shuffled labels.",
        )
        return [Section("fir", "When do units respond?", [what], [plot], tables, notes)]
