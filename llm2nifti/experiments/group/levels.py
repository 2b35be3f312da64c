"""The second level: effects at relative depths over models, and unit by unit over sessions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import stats

from llm2nifti import bids, geometry, glm, networks
from llm2nifti.bids import Session
from llm2nifti.bids.dataset import GROUP
from llm2nifti.bids.sessions import Sessions
from llm2nifti.experiments.errors import ExperimentError
from llm2nifti.experiments.group.parts import DepthLevel, Grid, VoxelLevel
from llm2nifti.experiments.group.plan import GroupPlan
from llm2nifti.experiments.results import Interval
from llm2nifti.geometry import set_header
from llm2nifti.glm.maps import described
from llm2nifti.glm.second_level import second_level
from llm2nifti.networks.representation import effect_energy
from llm2nifti.parcels import parcels_of, read
from llm2nifti.progress import track

_VOXEL = 4.0  # mm, of the common space
_SIDES = ("left", "middle", "right")


def shared_sites(sessions: Sequence[Session], wanted: Sequence[str] = ()) -> list[str]:
    """Sites that every model has in at least two layers, from left to right."""
    sites = {site.name: site.side for site in sessions[0].brain.sites}
    for session in sessions:
        layers = [site.name for site in session.brain.sites]
        sites = {name: side for name, side in sites.items() if layers.count(name) > 1}
    kept = [name for name in sites if not wanted or name in wanted]
    if not kept:
        told = "; ".join(
            f"{one.name}: {', '.join(dict.fromkeys(s.name for s in one.brain.sites))}"
            for one in sessions[:2]
        )
        raise ExperimentError(f"the models share no site of several layers ({told})")
    return sorted(kept, key=lambda name: _SIDES.index(sites[name]))


def bins_of(values: Sequence[float], n_bins: int) -> NDArray[np.float64]:
    """(n_bins,) values of layers at relative depth: each layer fills an equal share of it.

    Examples
    --------
    >>> bins_of([1.0, 3.0], 4)
    array([1., 1., 3., 3.])
    >>> bins_of([1.0, 2.0, 3.0, 4.0], 2)
    array([1.5, 3.5])
    """
    layers, bins = (np.linspace(0, 1, n + 1) for n in (len(values), n_bins))
    ends = np.minimum(bins[1:, None], layers[None, 1:])
    overlap = np.maximum(ends - np.maximum(bins[:-1, None], layers[None, :-1]), 0)
    return overlap @ np.asarray(values, float) / overlap.sum(axis=1)


def _energies(session: Session, sites: Sequence[str], *, verbose: int) -> dict[str, Grid]:
    """Energy of each task's effect by site, one value a layer."""
    parcels = parcels_of(session.brain, sites=sites)
    out: dict[str, Grid] = {task: {name: [] for name in sites} for task in session.tasks}
    parts = {}
    for task in session.tasks:
        for run in session.of(task):
            design = glm.design_matrix(run.events)
            vector = glm.contrast_vector(design, glm.task_contrast(run.events))
            parts[task, run.run] = (design.to_numpy(), vector)
    ends = np.cumsum([len(run.events) for run in session])[:-1]
    for parcel, values in read(session.runs, parcels, verbose=verbose):
        pieces = np.split(values.astype(float), ends)
        for task in session.tasks:
            runs = [i for i, run in enumerate(session) if run.task == task]
            designs = [parts[task, session[i].run] for i in runs]
            energy = effect_energy([pieces[i] for i in runs], designs)
            out[task][parcel.site].append(energy)
    return out


def depth_levels(sessions: Sessions, plan: GroupPlan, *, verbose: int = 1) -> list[DepthLevel]:
    """Test every task's effect at relative depths, over models, and write the maps.

    Sessions of one model are averaged first, unless there is one model only.
    """
    sites = shared_sites(sessions, plan.site)
    grids: dict[str, list[dict[str, Grid]]] = {}
    is_one = len({session.subject for session in sessions}) == 1
    for session in track(sessions, "depth", unit="session", verbose=verbose):
        of_one = {
            task: {name: bins_of(row, plan.n_bins).tolist() for name, row in grid.items()}
            for task, grid in _energies(session, sites, verbose=0).items()
        }
        name = session.name if is_one else f"sub-{session.subject}"
        grids.setdefault(name, []).append(of_one)
    out = []
    for task in sessions[0].tasks:
        maps = {
            name: np.mean([[one[task][site] for site in sites] for one in of_model], axis=0)
            for name, of_model in grids.items()
        }
        for kind in ("effect", "profile"):
            shown = {n: m - (m.mean() if kind == "profile" else 0) for n, m in maps.items()}
            out.append(_depth_level(sessions, plan, (task, kind), sites, shown))
    content = {"x": sites, "z": f"{plan.n_bins} bins of relative depth, input to output"}
    bids.write_json(sessions.folder / GROUP / "space-depth_axes.json", sessions.root, content)
    return out


def _depth_level(
    sessions: Sessions,
    plan: GroupPlan,
    what: tuple[str, str],
    sites: Sequence[str],
    maps: Mapping[str, NDArray[np.float64]],
) -> DepthLevel:
    """Second level of one task's maps."""
    task, kind = what
    imgs = {name: _depth_img(values) for name, values in maps.items()}
    mask = _depth_img(np.ones((len(sites), plan.n_bins), np.uint8))
    level = second_level(list(imgs.values()), mask, n_perm=plan.n_perm, seed=plan.seed)
    imgs["group"] = level.t_img
    for name, img in imgs.items():
        stat = "t" if name == "group" else "energy"
        df = level.n - 1 if name == "group" else None
        described(img, stat, f"{task} ({kind} by depth) in {name}", df=df)
        start = "" if name == "group" else f"{name}_"
        stem = f"{start}task-{task}_space-depth_desc-{kind}_stat-{stat}_statmap"
        path = sessions.folder / GROUP / f"{stem}.nii.gz"
        bids.write_img(path, sessions.root, img)

    def grid(values: NDArray[np.float64]) -> Grid:
        rows = np.round(values.reshape(len(sites), -1), 6).tolist()
        return dict(zip(sites, rows, strict=True))

    p_max = None if level.p_max is None else grid(level.p_max)
    models = {name: grid(values) for name, values in maps.items()}
    return DepthLevel(task, kind, models, grid(np.nan_to_num(level.t)), p_max)


def _depth_img(values: NDArray) -> nib.Nifti1Image:
    """Image of (n_sites, n_bins) values: x is the site, z the depth, input at the bottom."""
    affine = np.diag([_VOXEL, _VOXEL, _VOXEL, 1.0])
    return set_header(nib.Nifti1Image(np.asarray(values)[:, None, :], affine))


def voxel_levels(sessions: Sessions, plan: GroupPlan, *, verbose: int = 1) -> list[VoxelLevel]:
    """Test the effect maps unit by unit, over the sessions of each geometry, and write t maps."""
    spaces: dict[str, list[Session]] = {}
    for session in sessions:
        spaces.setdefault(session.brain.space, []).append(session)
    out = []
    for space, members in spaces.items():
        if len(members) < 2:
            continue
        effects, analysed = [], np.ones(members[0].brain.n_units, bool)
        for session in track(members, f"effects in {space}", unit="session", verbose=verbose):
            of_one = {}
            for task in session.tasks:
                runs = session.of(task)
                maps = glm.fit(runs, verbose=0).contrast(glm.task_contrast(runs.first.events))
                of_one[task] = geometry.from_img(session.brain, maps.effect_img)
                analysed &= maps.analysed
            effects.append(of_one)
        for task in members[0].tasks:
            out.append(_voxel_level(sessions.root, plan, members, task, (effects, analysed)))
    return out


def _voxel_level(
    root: Path,
    plan: GroupPlan,
    members: Sequence[Session],
    task: str,
    maps: tuple[Sequence[Mapping[str, NDArray]], NDArray[np.bool_]],
) -> VoxelLevel:
    """Second level of one task's effects."""
    (effects, analysed), brain = maps, members[0].brain
    mask = geometry.to_img(brain, analysed)
    imgs = [geometry.to_img(brain, one[task] * analysed) for one in effects]
    level = second_level(imgs, mask, n_perm=plan.n_perm, seed=plan.seed)
    stem = f"space-{brain.space}_task-{task}_desc-effect_stat-t_statmap"
    path = root / bids.DERIVATIVES / GROUP / f"{stem}.nii.gz"
    contrast = glm.task_contrast(members[0].of(task).first.events)
    img = described(level.t_img, "t", f"{contrast} over sessions", df=level.n - 1)
    bids.write_img(path, root, img)
    pairs = list(combinations(effects, 2))
    same = [networks.correlation(a[task][analysed], b[task][analysed]) for a, b in pairs]
    cross = [
        networks.correlation(a[task][analysed], b[other][analysed])
        for a, b in pairs
        for other in members[0].tasks
        if other != task
    ]
    p = np.nan_to_num(level.p, nan=1.0)
    return VoxelLevel(
        task=task,
        space=brain.space,
        sessions=[session.name for session in members],
        n_units=int(analysed.sum()),
        same_r=Interval(float(np.mean(same)), min(same), max(same)),
        cross_r=float(np.mean(cross)) if cross else None,
        below_05=float((p < 0.05).mean()),
        n_fdr=int((stats.false_discovery_control(p) < 0.05).sum()),
        n_max=None if level.p_max is None else int((level.p_max < 0.05).sum()),
    )
