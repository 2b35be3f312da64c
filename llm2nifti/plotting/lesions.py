"""What do lesions do? Effects of every network on every task, and how they grow with size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from llm2nifti.plotting.style import PALETTE, new_axes, styled


@styled
def plot_lesions(
    effects: ArrayLike,
    networks: Sequence[str],
    tasks: Sequence[str],
    *,
    clear: ArrayLike | None = None,
    ax: Axes | None = None,
    title: str = "",
    row_label: str = "Lesion of the network of",
) -> Axes:
    """Draw what the lesion of each network does to the text of each task.

    Parameters
    ----------
    effects : (n_networks, n_tasks) array
        Change in nats a token beyond that of matched random units; below 0 the lesion hurts more.
    networks, tasks : sequence of str
        Names of rows and columns.
    clear : (n_networks, n_tasks) bool array, optional
        Cells to mark with a star: their interval excludes 0.
    ax, title, row_label : optional

    Examples
    --------
    >>> ax = plot_lesions([[-0.2, 0.01]], ["pathology"], ["pathology", "control"])
    >>> ax.texts[0].get_text()
    '−0.200'
    """
    values = np.asarray(effects, float)
    if values.shape != (len(networks), len(tasks)):
        raise ValueError(
            f"{len(networks)} networks and {len(tasks)} tasks do not fit effects of shape "
            f"{values.shape}"
        )
    stars = np.zeros(values.shape, bool) if clear is None else np.asarray(clear, bool)
    ax = ax or new_axes(2.8 + 0.62 * len(tasks), 2.4 + 0.45 * len(networks))
    top = float(np.abs(values).max()) or 1.0
    image = ax.imshow(values, cmap=mpl.colormaps["RdBu"], vmin=-top, vmax=top, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        text = f"{value:z.3f}".replace("-", "−") + "*" * bool(stars[i, j])
        color = "white" if abs(value) > 0.6 * top else "black"
        weight = "bold" if networks[i] == tasks[j] else "normal"
        ax.text(j, i, text, ha="center", va="center", color=color, fontsize=7.5, weight=weight)
    label = "Beyond matched random units (nats/token)"
    ax.figure.colorbar(image, ax=ax, label=label, shrink=0.9)
    ax.set_xticks(range(len(tasks)), tasks, rotation=40, ha="right", rotation_mode="anchor")
    ax.set(yticks=range(len(networks)), yticklabels=networks, title=title)
    ax.set_xlabel("Text of", fontsize=9)
    ax.set_ylabel(row_label, fontsize=9)
    ax.spines[:].set_visible(False)
    return ax


@styled
def plot_doses(
    doses: Mapping[str, Mapping[float, tuple[float, float, float]]],
    *,
    ax: Axes | None = None,
    title: str = "",
) -> Axes:
    """Draw how the effect of a lesion grows with the share of units that it takes.

    Parameters
    ----------
    doses : mapping of str to mapping of float to (value, low, high)
        For each curve, by share of the units (0..1): change in nats a token with its interval.
    ax, title : optional

    Examples
    --------
    >>> ax = plot_doses({"own network": {0.01: (-0.1, -0.2, 0.0), 0.05: (-0.4, -0.5, -0.3)}})
    """
    ax = ax or new_axes(5.2, 3.4)
    for i, (name, curve) in enumerate(doses.items()):
        shares = sorted(curve)
        values = np.array([curve[share] for share in shares])
        x = 100 * np.array(shares) * (1 + 0.03 * (i - (len(doses) - 1) / 2))  # apart, to be seen
        spread = np.abs(values[:, 1:] - values[:, :1]).T
        ax.errorbar(x, values[:, 0], yerr=spread, fmt="-o", ms=4, color=PALETTE[i], label=name)
    ticks = sorted({100 * share for curve in doses.values() for share in curve})
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.axhline(0, color="black", lw=0.8)
    ax.set(xlabel="Units lesioned (%)", ylabel="Change (nats/token)", title=title)
    ax.legend(fontsize=8)
    return ax
