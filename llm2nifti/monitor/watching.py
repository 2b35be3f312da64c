"""How active is every network at every token that the model generates?"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from transformers import StoppingCriteria

from llm2nifti.interventions import InterventionError
from llm2nifti.interventions.acts import Edit, Edited, edited
from llm2nifti.models import LoadedModel
from llm2nifti.networks import Controls, Network, Readout, Thresholds, read_out
from llm2nifti.networks.readout import running_means


class MonitorError(ValueError):
    """A model cannot be monitored this way."""


@dataclass(frozen=True)
class Crossing:
    """A network went above its threshold, for the first time in a sequence."""

    network: str  #: network, sequence: its name, and row of the batch
    sequence: int
    n_tokens: int  #: tokens seen, this one included
    #: score, threshold: mean of the network's scores over these tokens, and what it exceeds
    score: float
    threshold: float


class NetworkMonitor:
    """Score networks at every token that a model generates.

    A context manager. The model may be called in any way (``generate``, or a loop of one's own,
    with a cache or without), in batches, and inside interventions: entered after them, the monitor
    sees what they made. Weights are never touched, and no hook is left behind.

    Parameters
    ----------
    model, networks : LoadedModel, Network or sequence of Network
        The model, and what to score; only places where networks have units are looked at.
    controls : Controls
        Mean and SD of every unit in control trials.
    thresholds : Thresholds, optional
        From `llm2nifti.networks.calibrate`. `top`, `stop_when` and `on_crossing` need them.
    on_crossing : callable, optional
        Called with a `Crossing` when the mean score of a network goes above its threshold, once a
        network and sequence.

    Raises
    ------
    MonitorError
        If thresholds are missing or of other networks, or the model is not that of the networks.
    llm2nifti.interventions.InterventionError
        In a pass, if a module has another width than in the networks' space.
    llm2nifti.networks.ReadoutError
        If the networks do not fit together.

    Notes
    -----
    The score of a token is that of the pass which produced it, so the first one comes from the last
    token of the prompt; see `llm2nifti.networks.read_out` for what a score is. Sequences begin
    anew, and what was there is forgotten, with any pass that does not continue the last one by a
    single token: a longer pass, another cache, another number of sequences. Ways of generating
    that read several new tokens at once (assisted generation) are therefore not followed, and with
    beams the scores are those of rows, which beams exchange. Padding must come first.

    Examples
    --------
    >>> with NetworkMonitor(model, networks, controls) as monitor:  # doctest: +SKIP
    ...     model.module.generate(**inputs)
    >>> monitor.scores.shape  # doctest: +SKIP
    (1, 16, 6)
    """

    def __init__(
        self,
        model: LoadedModel,
        networks: Network | Sequence[Network],
        controls: Controls,
        *,
        thresholds: Thresholds | None = None,
        on_crossing: Callable[[Crossing], None] | None = None,
    ) -> None:
        self.readout: Readout = read_out(networks, controls)
        self.names = self.readout.names  # in the order of the last axis of scores
        self.thresholds = thresholds
        self._model = model
        self._on_crossing = on_crossing
        if "generate" not in model.modes():
            raise MonitorError(f"{model.name} generates nothing, so there is nothing to monitor")
        self._offsets = torch.tensor(self.readout.offsets, dtype=torch.float32)
        self._stack = ExitStack()
        self._is_entered = False
        ends = getattr(getattr(model.module, "generation_config", None), "eos_token_id", None)
        self._ends = set() if ends is None else set(np.atleast_1d(ends).tolist())
        if thresholds is not None and thresholds.names != self.names:
            raise MonitorError(
                f"the thresholds are of {', '.join(thresholds.names)}, the networks are "
                f"{', '.join(self.names)}; calibrate with the same networks"
            )
        if on_crossing is not None:
            self._need_thresholds("on_crossing")
        self.reset()

    def reset(self) -> None:
        """Forget all sequences; the next pass begins new ones."""
        self._rows: list[torch.Tensor] = []
        self._sums: torch.Tensor | None = None
        self._read: torch.Tensor | None = None
        self._cache = _reference(None)
        self._ended: list[bool] = []
        self._crossed: set[tuple[int, int]] = set()
        self._totals: dict[torch.device, torch.Tensor] = {}
        self._n = 0  # sequences of the pass that is going on; 0 between passes

    def __enter__(self) -> NetworkMonitor:
        """Set the hooks."""
        if self._is_entered:
            raise MonitorError("the monitor has been entered already; leave it first")
        module = self._model.module
        with ExitStack() as stack:
            stack.callback(module.register_forward_pre_hook(self._before, with_kwargs=True).remove)
            used = (self.readout.weights != 0).any(axis=1)
            try:
                stack.enter_context(edited(self._model, self.readout.brain, used, self._looking))
            except InterventionError as error:
                raise MonitorError(str(error)) from error
            stack.callback(module.register_forward_hook(self._after).remove)
            self._stack = stack.pop_all()
        self._is_entered = True
        return self

    def __exit__(self, *_error: object) -> None:
        """Remove the hooks; the scores stay."""
        self._n = 0
        self._is_entered = False
        self._stack.close()

    @property
    def scores(self) -> NDArray[np.float32]:
        """(n_sequences, n_tokens, n_networks) scores; NaN after the end of a sequence."""
        if not self._rows:
            return np.empty((0, 0, len(self.names)), np.float32)
        return torch.stack(self._rows, dim=1).numpy(force=True)

    @property
    def means(self) -> NDArray[np.float64]:
        """(n_sequences, n_networks) mean score over the tokens so far: what is thresholded."""
        scores = self.scores
        return running_means(scores)[:, -1] if scores.size else np.empty((0, len(self.names)))

    @property
    def top(self) -> list[str | None]:
        """For each sequence, the network furthest above its threshold; None where none is above.

        Networks are compared in SDs of their scores in control trials.
        """
        thresholds = self._need_thresholds("top")
        n_seen = (~np.isnan(self.scores[..., 0])).sum(axis=1)
        return [thresholds.top(m, int(n)) for m, n in zip(self.means, n_seen, strict=True)]

    def table(self) -> pd.DataFrame:
        """One row a sequence, token and network.

        Columns ``sequence, token`` (from 0 and 1), ``network, score, mean`` (over the tokens so
        far), and ``threshold`` where there are any. Nothing follows the end of a sequence.
        """
        scores = self.scores
        sequence, token, network = (axis.ravel() for axis in np.indices(scores.shape))
        table = pd.DataFrame({"sequence": sequence, "token": token + 1})
        table["network"] = np.array(self.names)[network]
        table["score"], table["mean"] = scores.ravel(), running_means(scores).ravel()
        if self.thresholds is not None:
            rows = np.minimum(token, len(self.thresholds.values) - 1)
            table["threshold"] = self.thresholds.values[rows, network]
        return table.dropna(subset="score", ignore_index=True)

    def stop_when(self, network: str) -> StoppingCriteria:
        """Make a criterion that ends a sequence when the network of this name is above threshold.

        It is for ``generate(stopping_criteria=[...])``; each sequence of a batch ends alone.
        MonitorError if there is no such network, or there are no thresholds.
        """
        self._need_thresholds("stop_when")
        if network not in self.names:
            raise MonitorError(f"no network {network!r}; there are: {', '.join(self.names)}")
        return AboveThreshold(self, self.names.index(network))

    def above(self) -> NDArray[np.bool_]:
        """(n_sequences, n_networks) whether the mean so far is above threshold.

        Of sequences that have ended, nothing is.
        """
        thresholds = self._need_thresholds("above")
        if self._sums is None:
            return np.zeros((0, len(self.names)), bool)
        n_seen = len(self._rows)
        return self._sums.numpy(force=True) / n_seen > thresholds.at(n_seen)

    def end(self, is_done: NDArray[np.bool_]) -> None:
        """Score these of the sequences, (n_sequences,) bool, no more, whatever their last token."""
        self._ended = [a or bool(b) for a, b in zip(self._ended, is_done, strict=True)]

    def _need_thresholds(self, what: str) -> Thresholds:
        """The thresholds, or an error that says what needs them."""
        if self.thresholds is None:
            raise MonitorError(
                f"{what} needs thresholds: give thresholds=networks.calibrate(names, scores of "
                "control trials)"
            )
        return self.thresholds

    def _before(self, _module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        """Begin a pass: are these the sequences of the last one?"""
        tokens, cache = _tokens(self._model.kind, args, kwargs), _cache(kwargs)
        self._n = 0
        if tokens is None:
            return
        if not self._continues(tokens, cache):
            self.reset()
        elif tokens.ndim == 2:  # ids; embeddings do not say that a sequence has ended
            newest = tokens[:, -1].tolist()
            self._ended = [e or t in self._ends for e, t in zip(self._ended, newest, strict=True)]
        self._n = len(tokens)
        self._ended = self._ended or [False] * self._n
        self._read = tokens
        self._cache = _reference(cache)
        self._totals.clear()

    def _continues(self, tokens: torch.Tensor, cache: Any) -> bool:
        """Whether a pass goes on by one token where the last one ended."""
        last = self._read
        if last is None or len(last) != len(tokens) or not self._rows:
            return False
        if cache is not None:
            return tokens.shape[1] == 1 and cache is self._cache()
        n = last.shape[1]
        return tokens.shape[1] == n + 1 and torch.equal(tokens[:, :n], last)

    def _looking(self, where: Edited) -> Edit:
        """Add what the last position of one point says, in every pass; nothing is edited."""
        matrices: dict[torch.device, torch.Tensor] = {}

        def look(tensor: torch.Tensor) -> None:
            n = self._n
            if not n:  # a part of the model is called on its own
                return
            is_batch = tensor.ndim == 3 and len(tensor) == n
            last = (tensor if is_batch else tensor.reshape(n, -1, tensor.shape[-1]))[:, -1]
            if last.requires_grad:
                last = last.detach()
            device = last.device
            if device not in matrices:
                # Dense, because one small product costs less than picking units out.
                matrix = np.zeros((last.shape[-1], len(self.names)), np.float32)
                # A tensor may stand under two sites, each with its baseline.
                np.add.at(matrix, where.positions, self.readout.weights[where.units])
                matrices[device] = torch.from_numpy(matrix).to(device)
            if device not in self._totals:
                self._totals[device] = matrices[device].new_zeros(n, len(self.names))
            self._totals[device].addmm_(last.float(), matrices[device])

        return look

    def _after(self, _module: torch.nn.Module, _args: Any, output: Any) -> None:
        """End a pass: a row of scores is complete."""
        if not self._n:
            return
        self._n = 0
        made = _cache(output)
        if made is not None:  # also where none was given, as in the first pass of a loop
            self._cache = _reference(made)
        if not self._totals:
            return
        device = next(iter(self._totals))
        row = sum((total.to(device) for total in self._totals.values()), self._offsets.to(device))
        if any(self._ended):
            row[torch.tensor(self._ended, device=row.device)] = torch.nan
        self._rows.append(row)
        self._sums = row.clone() if self._sums is None else self._sums.to(row.device) + row
        if self._on_crossing is None:
            return
        n_seen = len(self._rows)
        limits = self._need_thresholds("on_crossing").at(n_seen).tolist()
        for sequence, network in np.argwhere(self.above()).tolist():
            if (sequence, network) not in self._crossed:  # for the first time
                self._crossed.add((sequence, network))
                score = float(self._sums[sequence, network]) / n_seen
                name, limit = self.names[network], limits[network]
                self._on_crossing(Crossing(name, sequence, n_seen, score, limit))


def _tokens(kind: str, args: Any, kwargs: Any) -> torch.Tensor | None:
    """Ids or embeddings that a pass of the whole model generates from."""
    if kind == "seq2seq":
        given = [kwargs.get("decoder_input_ids"), kwargs.get("decoder_inputs_embeds")]
    else:
        given = [kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args[:1]]
    return next((item for item in given if isinstance(item, torch.Tensor)), None)


def _cache(values: Any) -> Any:
    """What a pass remembers, among its arguments or in its output."""
    for name in ("past_key_values", "cache_params", "state"):
        memory = values.get(name) if isinstance(values, dict) else getattr(values, name, None)
        if memory is not None:
            return memory
    return None


def _reference(value: Any) -> Callable[[], Any]:
    """Weak reference, so that a monitor keeps no cache alive."""
    try:
        return weakref.ref(value)
    except TypeError:  # None; or tuples and lists of older caches: never the same twice
        return lambda: None


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
