"""Runs with known content: planted arrays as run-like objects, or as real datasets."""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from nilearn.glm.first_level import make_first_level_design_matrix
from scipy import linalg

from llm2nifti import bids, geometry
from llm2nifti.geometry import ModelBrain, Site
from llm2nifti.networks import Identification, TrialSet
from llm2nifti.paradigm import Paradigm
from llm2nifti.recording import TOKEN_COLUMNS, Recording


def brain(n_units: int, right: str = "mlp") -> ModelBrain:
    """Brain of two layers with three sites each; the last site takes what is left."""
    part = n_units // 6
    last = n_units - 5 * part
    kinds = [("attn", "left"), ("resid", "middle"), (right, "right")]
    sites = [
        Site(
            name, layer, f"h.{layer}.{name}", part if (layer, name) != (2, right) else last, side=s
        )
        for layer in (1, 2)
        for name, s in kinds
    ]
    return geometry.layout(sites)


def trials(
    task: str = "pain", *, n_blocks: int = 3, n_on: int = 12, n_off: int = 16, levels=("a", "b")
) -> pd.DataFrame:
    """Trials in blocks off, on, ..., off; question frames cycle in each condition."""
    parts = []
    for block in range(2 * n_blocks + 1):
        kind, n, n_parts = (task, n_on, n_blocks) if block % 2 else ("control", n_off, n_blocks + 1)
        for i in np.array_split(np.arange(n), n_parts)[block // 2]:
            frame = levels[i % len(levels)] if levels else ""
            topic = "pains" if kind == task else f"topic{i:03d}"
            parts.append((kind, block + 1, f"{kind}{i}", topic, f"{kind} {i}", frame))
    columns = ["trial_type", "block", "stim_id", "topic", "concept", "question_frame"]
    table = pd.DataFrame(parts, columns=columns)
    return table.assign(prompt=table["question_frame"] + " " + table["concept"])


@dataclass(frozen=True, eq=False)
class PlantedRun:
    """A run in memory that has all `llm2nifti.glm.RunLike` asks for."""

    task: str
    table: pd.DataFrame
    array: np.ndarray  # (n_trials, n_frames, n_units)
    brain: ModelBrain
    run: int = 1

    @property
    def n_frames(self) -> int:
        return self.array.shape[1]

    @property
    def frames(self) -> str:
        return "token"

    @property
    def volume_counts(self) -> np.ndarray:
        return np.full(len(self.table), self.n_frames)

    @property
    def t_r(self) -> float:
        return float(self.n_frames)

    @property
    def events(self) -> pd.DataFrame:
        return Paradigm(self.task, 1, self.n_frames, self.table).events

    @property
    def img(self) -> nib.Nifti1Image:
        return geometry.to_img(self.brain, self.values(), t_r=self.t_r)

    @property
    def frames_img(self) -> nib.Nifti1Image:
        return geometry.to_img(self.brain, self.frame_values(), t_r=1.0)

    @property
    def mask_img(self) -> nib.Nifti1Image:
        return geometry.mask_img(self.brain)

    def values(self) -> np.ndarray:
        return self.array.mean(axis=1)

    def frame_values(self) -> np.ndarray:
        return self.array.reshape(-1, self.array.shape[2])


def run(table: pd.DataFrame, values: np.ndarray, task: str = "pain") -> PlantedRun:
    """Run in memory from (n_trials, n_units) or (n_trials, n_frames, n_units) values."""
    values = np.asarray(values, float)
    values = values[:, None] if values.ndim == 2 else values
    return PlantedRun(task, table, values, brain(values.shape[2]))


def dataset_run(
    root: Path,
    table: pd.DataFrame,
    values: np.ndarray,
    *,
    task: str = "pain",
    number: int = 1,
    compress: bool = False,
    right: str = "mlp",
    counts: tuple[int, ...] | None = None,
    session: str = "",
    **model: str,
) -> bids.Run:
    """Write (n_trials, n_frames, n_units) values as a run of a dataset, and read it back.

    Of each trial, `counts` frames are kept.
    """
    values = np.asarray(values, np.float32)
    n_trials, n_frames, n_units = values.shape
    kept = np.arange(n_frames) < np.reshape(counts or [n_frames] * n_trials, (-1, 1))
    tokens = pd.DataFrame({name: np.zeros(kept.sum()) for name in TOKEN_COLUMNS})
    text = [f"answer {i}" for i in range(n_trials)]
    paradigm = Paradigm(task, number, n_frames, table, frame_counts=counts)
    info = {"Model": {"Subject": "planted", "WeightsHash": "none", **model}}
    if session:
        info["Model"]["Session"] = session
    space = brain(n_units, right)
    recording = Recording(values[kept], paradigm, space, tokens, text, text, info)
    bids.write(recording, root, compress=compress)
    who = {"subject": info["Model"]["Subject"], "session": info["Model"].get("Session")}
    return bids.read(root, task=task, run=number, **who)


def lstsq_contrast(X: np.ndarray, weights: np.ndarray, Y: np.ndarray) -> tuple:
    """Effect, variance and degrees of freedom by numpy alone."""
    beta = np.linalg.lstsq(X, Y, rcond=None)[0]
    df = len(X) - np.linalg.matrix_rank(X)
    scale = weights @ np.linalg.pinv(X.T @ X) @ weights
    return weights @ beta, ((Y - X @ beta) ** 2).sum(axis=0) / df * scale, df


def dummy_design(table: pd.DataFrame) -> np.ndarray:
    """Constant, task indicator and uncentred frame dummies: another basis of the same space."""
    levels = sorted(set(table["question_frame"]))[1:]
    columns = [np.ones(len(table)), table["trial_type"] != "control"]
    columns += [table["question_frame"] == level for level in levels]
    return np.column_stack(columns).astype(float)


def lstsq_t(table: pd.DataFrame, Y: np.ndarray) -> np.ndarray:
    """T of task against control by numpy alone."""
    X = dummy_design(table)
    effect, variance, _ = lstsq_contrast(X, np.eye(X.shape[1])[1], np.asarray(Y, float))
    return effect / np.sqrt(variance)


def noise(table: pd.DataFrame, n_units: int = 24, n_frames: int = 1, seed: int = 0) -> np.ndarray:
    """Independent values whose units differ in mean and scale, as activations do."""
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.normal(size=n_units))
    return rng.normal(size=(len(table), n_frames, n_units)) * scale + 5 * rng.normal(size=n_units)


def coherent_topics(rng: np.random.Generator, strength: float) -> list[PlantedRun]:
    """Four runs with one control trial of each of 24 topics, which share a pattern over runs."""
    table = trials(n_on=8, n_off=24)
    is_control = (table["trial_type"] == "control").to_numpy()
    patterns = rng.normal(size=(24, 500))
    values = rng.normal(size=(4, 32, 500))
    values[:, is_control] += strength * patterns
    return [run(table, v) for v in values]


def two_sample_t(on: np.ndarray, off: np.ndarray) -> np.ndarray:
    """Student's t of every column."""
    n, m = len(on), len(off)
    pooled = (n * on.var(axis=0) + m * off.var(axis=0)) / (n + m - 2)
    return (on.mean(axis=0) - off.mean(axis=0)) / np.sqrt(pooled * (1 / n + 1 / m))


class Experiments:
    """Two tasks with fixed effects, two runs, 4 blocks of 5 task trials, correlated noise."""

    n_blocks, n_block, n_off, n_units = 4, 5, 24, 200

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.effects = {task: rng.normal(size=self.n_units) / 2 for task in "xy"}
        self.loadings = rng.normal(size=(3, self.n_units)) * 0.3

    def noise(self, n: int) -> np.ndarray:
        """Prompt-level noise with a covariance of low rank beside the independent part."""
        return (
            self.rng.normal(size=(n, self.n_units)) + self.rng.normal(size=(n, 3)) @ self.loadings
        )

    def draw(self) -> dict:
        """Task and control trials of each (task, run)."""
        n_on = self.n_blocks * self.n_block
        return {
            (task, run): (effect + self.noise(n_on), self.noise(self.n_off))
            for task, effect in self.effects.items()
            for run in (1, 2)
        }

    def maps(self, data: dict) -> dict:
        """T map of each (task, run)."""
        return {key: two_sample_t(*pair) for key, pair in data.items()}

    def resampled_maps(self, data: dict) -> dict:
        """T maps of trials drawn with replacement: the plain bootstrap."""
        rng = self.rng
        return self.maps(
            {key: tuple(x[rng.integers(0, len(x), len(x))] for x in d) for key, d in data.items()}
        )

    def without_block(self, data: dict) -> dict:
        """T maps with one block, and its share of the control, left out at a time."""
        out = {}
        for key, pair in data.items():
            blocks = [x.reshape(self.n_blocks, -1, self.n_units) for x in pair]
            kept = [
                [np.concatenate(np.delete(x, block, axis=0)) for x in blocks]
                for block in range(self.n_blocks)
            ]
            out[key] = np.stack([two_sample_t(*k) for k in kept])
        return out


@dataclass
class Maps:
    """Statistical maps made of chosen values."""

    brain: ModelBrain
    z: np.ndarray
    t_values: np.ndarray
    analysed: np.ndarray
    name: str = "pain - control"

    @property
    def z_img(self) -> nib.Nifti1Image:
        return geometry.to_img(self.brain, self.z)

    @property
    def mask_img(self) -> nib.Nifti1Image:
        return geometry.to_img(self.brain, self.analysed)

    def t(self) -> np.ndarray:
        return self.t_values


def some_maps(n_units: int = 600, n_signal: int = 60, seed: int = 0) -> Maps:
    """Noise and signal of both signs; a tenth of the units is not analysed."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n_units)
    z[:n_signal] += np.resize([4, -4], n_signal)
    analysed = rng.permutation(n_units) >= n_units // 10
    z *= analysed
    return Maps(brain(n_units), z, z * 1.1, analysed)


def trial_sets(rng: np.random.Generator, *, strength: float, n_units: int = 60) -> list[TrialSet]:
    """Two runs of three tasks, 8 task and 12 control trials each; frames shift all units."""
    scale = np.exp(rng.normal(size=n_units))
    mixing = np.eye(n_units) + rng.normal(size=(n_units, n_units)) / np.sqrt(n_units)
    shift = {"a": np.zeros(n_units), "b": 3 * rng.normal(size=n_units)}
    words = {"x": "bone fracture", "y": "lung window", "z": "drug dose"}
    is_task = np.arange(20) < 8
    frames = np.array(["a", "a", "a", "b", "b"] * 4)
    sets = []
    effects = {task: strength * rng.normal(size=n_units) for task in words}
    for run in (1, 2):
        for task, effect in effects.items():
            values = rng.normal(size=(20, n_units)) @ mixing + is_task[:, None] * effect
            values += [shift[f] for f in frames]
            prompts = [words[task] if on else "bone window dose" for on in is_task]
            sets.append(TrialSet(task, run, values * scale, is_task, frames, prompts))
    return sets


def templates(sets: list[TrialSet]) -> dict:
    """For each held-out run, every task's mean minus its control over the other runs."""
    out: dict = {}
    for held_out in sorted({s.run for s in sets}):
        for s in (s for s in sets if s.run != held_out):
            effect = s.values[s.is_task].mean(axis=0) - s.values[~s.is_task].mean(axis=0)
            of_run = out.setdefault(held_out, {})
            of_run[s.task] = of_run.get(s.task, 0) + effect
    return out


def dense_whitening(training: list[TrialSet], shrinkage: float) -> tuple[dict, np.ndarray]:
    """Mean control of each frame, and the whitening matrix by scipy; constant units get zeros."""
    values = np.concatenate([s.values[~s.is_task] for s in training])
    frames = np.concatenate([s.frames[~s.is_task] for s in training])
    means = {f: values[frames == f].mean(axis=0) for f in "ab"}
    residuals = np.array([v - means[f] for v, f in zip(values, frames, strict=True)])
    keep = residuals.std(axis=0) > 0
    shrunk = (1 - shrinkage) * np.corrcoef(residuals[:, keep].T) + shrinkage * np.eye(keep.sum())
    whitener = np.zeros((len(keep), len(keep)))
    root = np.linalg.inv(linalg.sqrtm(shrunk))
    whitener[np.ix_(keep, keep)] = root / residuals[:, keep].std(axis=0)[:, None]
    return means, whitener


def random_names(
    rng: np.random.Generator, n_tasks: int, n_folds: int, n_trials: int
) -> Identification:
    """Names drawn run by run: all trials of a run get the same, as if wholly dependent."""
    truth, fold = np.divmod(np.arange(n_tasks * n_folds), n_folds)
    named = rng.integers(0, n_tasks, n_tasks * n_folds)
    parts = [np.repeat(a, n_trials) for a in (truth, named, fold)]
    return Identification([f"t{i}" for i in range(n_tasks)], *parts)


def nilearn_regressor(paradigm: Paradigm, slice_time_ref: float) -> np.ndarray:
    """Task column that nilearn makes of the events, control rows dropped, at trial level."""
    t_r = paradigm.t_r * paradigm.n_frames
    events = paradigm.events[paradigm.events["trial_type"] != "control"]
    frame_times = (np.arange(paradigm.n_trials) + slice_time_ref) * t_r
    design = make_first_level_design_matrix(
        frame_times, events[["onset", "duration", "trial_type"]], hrf_model=None, drift_model=None
    )
    return design[paradigm.task].to_numpy()
