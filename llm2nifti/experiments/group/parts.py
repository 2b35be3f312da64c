"""What parts does the comparison of several models have? Typed numbers, read from JSON."""

from __future__ import annotations

from dataclasses import dataclass

from llm2nifti.experiments.results import Interval

Matrix = list[list[float]]
Grid = dict[str, list[float]]  # by site, one value a bin of depth


@dataclass(frozen=True)
class Member:
    """A session that takes part."""

    name: str
    space: str  #: label of its geometry
    parcels: list[str]  #: in depth order
    layers: list[int]
    sites: list[str]
    untrained: str | None = None  #: name of its copy


@dataclass(frozen=True)
class DepthLevel:
    """A task's effect at relative depths, over models."""

    task: str
    kind: str  #: ``effect``: against 0; ``profile``: against the model's own mean
    models: dict[str, Grid]  #: of each model
    t: Grid
    p_max: Grid | None = None  #: family-wise, where there are enough models


@dataclass(frozen=True)
class VoxelLevel:
    """A task's effect maps, over sessions of one geometry."""

    task: str
    space: str
    sessions: list[str]
    n_units: int
    same_r: Interval  #: correlation of effect maps of two sessions: mean and range over pairs
    cross_r: float | None  #: of maps of different tasks
    below_05: float  #: share of units with p < .05, uncorrected; .05 by chance
    n_fdr: int  #: units at a false discovery rate of .05
    n_max: int | None = None  #: family-wise by sign flips, where there are enough sessions


@dataclass(frozen=True)
class ModelPair:
    """Similarity of every parcel of one model with every parcel of another."""

    a: str
    b: str
    cka: Matrix
    mean: float
    best: float  #: mean over parcels of `a` of the most similar parcel of `b`
    best_null: Interval  #: the same of prompts shuffled within runs: mean and 95 % range
    best_p: float
    condition: float  #: the same where prompts are shuffled within runs and conditions
    limit: float  #: largest cell with shuffled prompts, 95th percentile
    share_above: float  #: cells above `limit`
    depth_r: float  #: rank correlation of relative depths of a parcel and of the most similar one
    depth_null: Interval
    depth_p: float
    rdm: Matrix | None = None  #: whitened correlation of RDMs of topics
    rdm_best: float | None = None
    rdm_null: Interval | None = None  #: of `rdm_best`, topics exchanged
    rdm_p: float | None = None
    n_topics: int | None = None
    untrained: float | None = None  #: `best` with the untrained copy of `a`


@dataclass(frozen=True)
class Carried:
    """A task's map of one model carried into another; cosines with a held-out run's map."""

    source: str
    target: str
    task: str
    cosine: Interval  #: mean and range over held-out runs
    null: Interval  #: prompts shuffled within runs: mean and 95 % range
    p: float
    repeat: float  #: of the target's map from the other runs, in place of the carried one
    cross: float | None  #: the carried map with the target's maps of other tasks
    penalty: float  #: of the ridge regression, median over held-out runs
    untrained: float | None = None  #: from the untrained copy of the source


@dataclass(frozen=True)
class Written:
    """A network carried into another model and written there."""

    what: str
    source: str
    target: str
    mask: str  #: file, relative to the dataset
    n_units: int
    dice: float | None = None  #: with the target's network of the same size, where it has the task
    null: Interval | None = None  #: prompts shuffled within runs: mean and 95 % range
    p: float | None = None
