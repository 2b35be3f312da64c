"""Datasets whose parcels share what was planted, in any basis, and models that share prompts."""

from pathlib import Path

import numpy as np
import pandas as pd
from planted import brain, dataset_run, trials

from llm2nifti import bids

TOPICS = 5  # of a task and of control, each in every run


def topic_trials(task: str, rng: np.random.Generator) -> pd.DataFrame:
    """Trials of a run: topics that repeat in every run, question frames balanced over them."""
    table = trials(task, n_blocks=2, n_on=20, n_off=24)
    for kind, rows in table.groupby("trial_type").groups.items():
        order = rng.permutation(len(rows))
        table.loc[rows, "topic"] = [f"{kind} topic {i % TOPICS}" for i in order]
    return table


def brain_dataset(root: Path, *, shared: dict | None = None, n_runs: int = 3) -> Path:
    """Tasks pain and joy of a model whose parcels are noise of their own, and what they share.

    Attention and MLP of layer 1 share a pattern of each prompt and topic, in every state; those of
    the layers in `shared` do in one task only. In layer 2, task prompts shift the stream.
    """
    rng = np.random.default_rng(0)
    brain_ = brain(6 * 16)
    mixing = {
        (layer, site): rng.normal(size=(4, 16)) for layer in (1, 2) for site in ("attn", "mlp")
    }
    of_topic = rng.normal(size=(2, 3, TOPICS, 4))
    shift = {task: rng.normal(size=16) for task in ("pain", "joy")}
    for task in ("pain", "joy"):
        for number in range(1, n_runs + 1):
            table = topic_trials(task, rng)
            is_on = (table["trial_type"] == task).to_numpy()
            topic = table["topic"].str[-1].astype(int).to_numpy()
            kind = np.where(is_on, 1 + (task == "joy"), 0)
            values = rng.normal(size=(len(table), 2, brain_.n_units))
            for layer in (1, 2):
                signal = rng.normal(size=(len(table), 4)) + of_topic[layer - 1, kind, topic]
                wanted = is_on & ((shared or {}).get(task) == layer) | (layer == 1)
                for site in brain_.sites:
                    place = brain_.slice_of(site)
                    if site.layer == layer and site.name != "resid":
                        added = (signal * wanted[:, None]) @ mixing[layer, site.name]
                        values[:, :, place] += added[:, None]
                    elif (site.layer, site.name) == (2, "resid") == (layer, "resid"):
                        values[is_on, :, place] += shift[task]
            dataset_run(root, table, values, task=task, number=number)
    bids.writing.clear_work(root)
    return root


class Turned:
    """A dataset again, every parcel in another basis: rotated at random, signs flipped."""

    def __init__(self, root: Path, *, turn: bool = True, seed: int = 0) -> None:
        self.session, self.turn = bids.session(root), turn
        rng = np.random.default_rng(seed)
        sites = self.session.brain.sites
        self.bases = [special(site.n_units, rng) for site in sites]

    def write(self, root: Path) -> Path:
        """Write the dataset."""
        model = self.session.brain
        for run in self.session:
            values = run.frame_values().astype(float)
            for site, basis in zip(model.sites, self.bases, strict=True):
                if self.turn:
                    place = model.slice_of(site)
                    values[:, place] = values[:, place] @ basis
            values = values.reshape(len(run.events), run.n_frames, -1)
            table = run.events.drop(columns=["onset", "duration", "response"])
            dataset_run(root, table, values, task=run.task, number=run.run)
        bids.writing.clear_work(root)
        return root


def special(n: int, rng: np.random.Generator) -> np.ndarray:
    """A random rotation, then random flips of signs."""
    basis, _ = np.linalg.qr(rng.normal(size=(n, n)))
    return basis * rng.choice([-1, 1], size=n)


class Latent:
    """Responses of two tasks' prompts in a space that models share; a model is an image of it."""

    n_latent, n_runs = 6, 3

    def __init__(self, *, tasks: tuple[str, ...] = ("pain", "joy"), seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.tables, self.responses = {}, {}
        axes, _ = np.linalg.qr(rng.normal(size=(self.n_latent,) * 2))
        topics: dict[str, np.ndarray] = {}
        for task, axis in zip(tasks, axes, strict=False):
            for number in range(1, self.n_runs + 1):
                table = topic_trials(task, rng)
                table["prompt"] = [f"{task} {number} {text}" for text in table["prompt"]]
                for topic in sorted(set(table["topic"])):
                    topics.setdefault(topic, rng.normal(size=self.n_latent))
                latent = rng.normal(size=(len(table), self.n_latent))
                latent += np.stack([topics[topic] for topic in table["topic"]])
                latent[(table["trial_type"] == task).to_numpy()] += 4 * axis
                self.tables[task, number], self.responses[task, number] = table, latent

    def write(
        self,
        root: Path,
        name: str,
        *,
        seed: int,
        part: int = 16,
        shared: tuple[int, ...] = tuple(range(6)),
        turn: bool = False,
        **model: str,
    ) -> Path:
        """Write a model: sites in `shared` are images of the latent responses, others noise."""
        rng, brain_ = np.random.default_rng(seed), brain(6 * part)
        mixing = rng.normal(size=(6, self.n_latent, part))
        bases = [special(part, np.random.default_rng([seed, i])) for i in range(6)]
        for (task, number), table in self.tables.items():
            values = rng.normal(size=(len(table), 6, part))
            for site in range(6):
                if site in shared:
                    signal = self.responses[task, number] @ mixing[site]
                    values[:, site] = signal + 0.3 * values[:, site]
                if turn:
                    values[:, site] = values[:, site] @ bases[site]
            values = values.reshape(len(table), 1, brain_.n_units)
            how = {"task": task, "number": number, "Subject": name}
            dataset_run(root, table, values, **how, **model)
        bids.writing.clear_work(root)
        return root
