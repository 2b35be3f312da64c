"""How do components and parcels become files? Images of all runs, and one table of time courses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import digits

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llm2nifti import geometry
from llm2nifti.bids.dataset import COLUMNS
from llm2nifti.bids.files import write_img, write_tsv
from llm2nifti.bids.paths import DERIVATIVES
from llm2nifti.bids.reading import Run
from llm2nifti.plans import Json


def write_parts(
    files: Mapping[str, Path],
    runs: Sequence[Run],
    *,
    maps: NDArray,
    parcels: NDArray[np.int64],
    courses: Sequence[NDArray],
    settings: Json,
) -> None:
    """Write component maps, a parcellation with its names, and their time courses.

    Parameters
    ----------
    files, runs
        Of `RunPaths.parts`; and what the parts were made from.
    maps, parcels : (n_components, n_units) array, (n_units,) array
        Maps, and numbers of parcels from 1.
    courses : sequence of (n_trials, n_components + n_parcels) array
        Time courses of each run.
    settings : dict
        How the parts were made.
    """
    root, brain, first = runs[0].paths.root, runs[0].brain, runs[0].sidecar
    sources = [run.paths.trial_bold.relative_to(root / DERIVATIVES).as_posix() for run in runs]
    common: Json = {"Sources": [f"bids::{source}" for source in sources]}
    common |= {"SpatialReference": first["SpatialReference"], "Settings": settings}
    told: Json = {"Description": "Maps, each of SD 1; its sign is arbitrary."}
    write_img(files["components"], root, geometry.to_img(brain, maps), common | told)
    told = {"Description": "Units by k-means of their time courses, in no order.", "Manual": False}
    parcel_img = geometry.to_img(brain, parcels.astype(np.int32))
    write_img(files["parcels"], root, parcel_img, common | told)
    n_parcels = courses[0].shape[1] - len(maps)
    names = pd.DataFrame({"index": range(1, n_parcels + 1)})
    names["name"] = names["index"].map("parcel{:02d}".format)
    write_tsv(files["names"], root, names)
    columns = [*(f"component{i:02d}" for i in range(1, len(maps) + 1)), *names["name"]]
    rows = []
    for run, values in zip(runs, courses, strict=True):
        shown = {"task": run.task, "run": run.run, "trial": range(len(values))}
        trials = pd.DataFrame(shown | {"trial_type": run.events["trial_type"]})
        rows.append(trials.join(pd.DataFrame(values, columns=columns)))
    sidecar = {name: COLUMNS["parts"][name.rstrip(digits)] for name in rows[0]}
    write_tsv(files["courses"], root, pd.concat(rows), sidecar)
