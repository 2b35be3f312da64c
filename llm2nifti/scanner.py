"""Run a paradigm through a model and record what its layers do.

Trials are generated in batches; hooks fire during generation and their values go straight to the
recording. Frame ``t`` of a trial holds the outputs of the forward pass that produced token ``t``:
the first frame is the last position of the pass that reads the prompt.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from inspect import signature
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from llm2nifti import __version__
from llm2nifti.defaults import BATCH_SIZE
from llm2nifti.geometry import ModelBrain, layout
from llm2nifti.hooks import Point, first_tensor, tap
from llm2nifti.models import LanguageModel
from llm2nifti.paradigm import Paradigm
from llm2nifti.recording import TOKEN_COLUMNS, Journal, Recording


class ScanError(ValueError):
    """A paradigm cannot be run through this model."""


@dataclass(frozen=True)
class Settings:
    """How to record.

    Attributes
    ----------
    sites : str
        What to record; see `llm2nifti.models.sites.find_sites`.
    template : {"auto", "chat", "none"}
        Whether prompts are wrapped in the model's chat template.
    batch_size : int
        Trials generated together. It is part of the plan: another size changes values by rounding.
    temperature : float
        0 is greedy; otherwise tokens are sampled with one generator a trial.
    seed : int
        Seed of the sampling.
    """

    sites: str = "default"
    template: str = "auto"
    batch_size: int = BATCH_SIZE
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.batch_size < 1:
            raise ScanError(f"batch_size is {self.batch_size}; it must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise ScanError(f"temperature is {self.temperature}; it must be 0 or more")


def scan(
    model: LanguageModel,
    paradigm: Paradigm,
    *,
    settings: Settings | None = None,
    folder: Path | str | None = None,
    replay: Sequence[Sequence[int]] | None = None,
    on_trials: Callable[[int], object] | None = None,
) -> Recording:
    """Show a paradigm to a model and record its units.

    Parameters
    ----------
    model : LanguageModel
        From `llm2nifti.models.load`.
    paradigm : Paradigm
        What to show.
    settings : Settings, optional
        What and how to record.
    folder : path-like, optional
        Where to keep the values. An interrupted recording in this folder is resumed. By default a
        temporary folder that lives as long as the recording.
    replay : sequence of (n_frames,) sequences of int, optional
        Token ids to force, one sequence a trial, instead of letting the model generate: one
        forward pass a batch. Used for untrained models, which only repeat one token by themselves.
    on_trials : callable, optional
        Called with the number of trials of every finished batch; by default a progress bar.

    Returns
    -------
    Recording

    Raises
    ------
    ScanError
        If a prompt does not fit the model's context or the replay does not fit the paradigm.

    Examples
    --------
    >>> from llm2nifti import models, paradigm, scanner  # doctest: +SKIP
    >>> scanner.scan(models.load(), paradigm.blocks("pathology"))  # doctest: +SKIP
    Recording: task pathology, run 1, 56 trials x 4 frames x 52992 units
    """
    settings = settings or Settings()
    brain = layout(model.sites(settings.sites))
    rendered = model.render(list(paradigm.trials["prompt"]), settings.template)
    is_chat = rendered != list(paradigm.trials["prompt"])
    encoded = model.encode(rendered, rendered=is_chat)
    _check_lengths(model, paradigm, encoded)
    _check_replay(paradigm, replay)
    info = _provenance(model, settings, is_chat=is_chat, replayed=replay is not None)
    plan = {
        "info": info,
        "space": brain.space,
        "rendered": rendered,
        "n_frames": paradigm.n_frames,
        "replay": None if replay is None else [list(map(int, tokens)) for tokens in replay],
    }
    temporary = None
    if folder is None:
        temporary = tempfile.TemporaryDirectory(prefix="llm2nifti-", ignore_cleanup_errors=True)
        folder = temporary.name
    shape = (paradigm.n_trials, paradigm.n_frames, brain.n_units)
    journal = Journal(Path(folder), shape, plan)
    operator = _Operator(model, brain, settings, encoded, replay)
    with _progress(paradigm, on_trials) as advance:
        _run_batches(operator, journal, settings.batch_size, advance)
    rows = journal.rows()
    recording = Recording(
        values=journal.values,
        paradigm=paradigm,
        brain=brain,
        tokens=_token_table(rows),
        responses=[row["response"] for row in rows],
        rendered=rendered,
        info=info,
        norms=model.weight_norms(brain.sites),
    )
    # The folder lives as long as the recording that reads from it.
    object.__setattr__(recording, "_temporary", temporary)
    return recording


def _run_batches(
    operator: _Operator, journal: Journal, batch_size: int, advance: Callable[[int], object]
) -> None:
    """Record the batches that are not in the journal yet."""
    finished = {batch["start"] for batch in journal.batches}
    n_trials = len(journal.values)
    for start in range(0, n_trials, batch_size):
        stop = min(start + batch_size, n_trials)
        if start not in finished:
            rows = operator.record(slice(start, stop), journal.values[start:stop])
            journal.commit(start, stop, rows)
        advance(stop - start)


@contextmanager
def _progress(
    paradigm: Paradigm, on_trials: Callable[[int], object] | None
) -> Iterator[Callable[[int], object]]:
    """Progress bar of a single scan, unless the caller shows its own."""
    if on_trials is not None:
        yield on_trials
        return
    label = f"scan {paradigm.task} run {paradigm.run}"
    with tqdm(total=paradigm.n_trials, desc=label, unit="trial", disable=None) as bar:
        yield bar.update


class _Operator:
    """Records one batch at a time: feeds the model, and stores what its sites put out."""

    def __init__(
        self,
        model: LanguageModel,
        brain: ModelBrain,
        settings: Settings,
        encoded: list[list[int]],
        replay: Sequence[Sequence[int]] | None,
    ) -> None:
        self.model = model
        self.settings = settings
        self.encoded = encoded
        self.replay = replay
        self.slices: dict[Point, slice] = {
            Point(site.module, site.where): brain.slice_of(site) for site in brain.sites
        }
        self.stream = Point(model.anatomy.blocks[-1].name)
        tokenizer, config = model.tokenizer, model.module.config
        pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, config.eos_token_id, 0)
        pad = next(p for p in pads if p is not None)
        self.pad = pad[0] if isinstance(pad, list) else int(pad)

    def record(self, trials: slice, out: np.ndarray) -> list[dict[str, Any]]:
        """Record some trials into `out` (n_trials, n_frames, n_units); return their metadata."""
        ids, mask = self._pad_left(self.encoded[trials])
        n_frames = out.shape[1]
        buffer = torch.from_numpy(out)
        if self.model.device.type != "cpu":
            buffer = torch.empty(out.shape, dtype=torch.float32, device=self.model.device)
        norms = torch.empty(out.shape[:2], device=self.model.device)
        if self.replay is None:
            tokens, logits = self._generate(ids, mask, buffer, norms, trials)
        else:
            tokens = torch.tensor([list(t) for t in self.replay[trials]], device=ids.device)
            logits = self._force(ids, mask, tokens, buffer, norms)
        if self.model.device.type != "cpu":
            out[:] = buffer.cpu().numpy()
        return self._describe(tokens, logits, norms, n_frames)

    def _pad_left(self, encoded: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """(n_trials, longest) token ids and attention mask, padded on the left."""
        longest = max(map(len, encoded))
        ids = torch.full((len(encoded), longest), self.pad)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(encoded):
            ids[row, longest - len(tokens) :] = torch.tensor(tokens)
            mask[row, longest - len(tokens) :] = 1
        return ids.to(self.model.device), mask.to(self.model.device)

    def _generate(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        buffer: torch.Tensor,
        norms: torch.Tensor,
        trials: slice,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Generate tokens with hooks on; (n_trials, n_frames) ids and their logits."""
        from transformers import GenerationConfig

        n_trials, n_frames, _ = buffer.shape
        step = -1

        def next_step(_module: torch.nn.Module, _args: Any) -> None:
            nonlocal step
            step += 1

        def store(point: Point, tensor: torch.Tensor) -> None:
            # The pass of the prompt has many positions, the later ones have one: keep the last.
            last = tensor.reshape(n_trials, -1, tensor.shape[-1])[:, -1]
            if point in self.slices:
                buffer[:, step, self.slices[point]] = last
            if point == self.stream:
                norms[:, step] = last.float().norm(dim=-1)

        config = GenerationConfig(
            max_new_tokens=n_frames,
            min_new_tokens=n_frames,
            do_sample=False,
            pad_token_id=self.pad,
            eos_token_id=self.model.module.generation_config.eos_token_id,
            return_dict_in_generate=True,
            output_logits=True,
        )
        points = dict.fromkeys([*self.slices, self.stream])
        counter = self.model.module.register_forward_pre_hook(next_step)
        try:
            with tap(self.model.module, points, store):
                result = self.model.module.generate(
                    ids,
                    attention_mask=mask,
                    generation_config=config,
                    logits_processor=self._samplers(trials),
                )
        finally:
            counter.remove()
        logits = torch.stack(result.logits, dim=1)
        return result.sequences[:, ids.shape[1] :], logits

    def _samplers(self, trials: slice) -> list[_OwnGenerators]:
        """Sampling with one generator a trial, or nothing for greedy decoding."""
        if self.settings.temperature == 0:
            return []
        numbers = range(trials.start, trials.stop)
        return [_OwnGenerators(self.settings.temperature, self.settings.seed, numbers)]

    @torch.no_grad()
    def _force(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        tokens: torch.Tensor,
        buffer: torch.Tensor,
        norms: torch.Tensor,
    ) -> torch.Tensor:
        """Logits (n_trials, n_frames, vocabulary) of one pass over the prompt and given tokens."""
        n_trials, n_frames, _ = buffer.shape

        def store(point: Point, tensor: torch.Tensor) -> None:
            frames = tensor.reshape(n_trials, -1, tensor.shape[-1])[:, -n_frames:]
            if point in self.slices:
                buffer[:, :, self.slices[point]] = frames
            if point == self.stream:
                norms[:] = frames.float().norm(dim=-1)

        # The last token is produced, never read.
        ids = torch.cat([ids, tokens[:, :-1]], dim=1)
        mask = torch.cat([mask, torch.ones_like(tokens[:, :-1])], dim=1)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
        accepted = signature(self.model.module.forward).parameters
        if "position_ids" in accepted:
            inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
        if "logits_to_keep" in accepted:
            inputs["logits_to_keep"] = n_frames
        points = dict.fromkeys([*self.slices, self.stream])
        with tap(self.model.module, points, store):
            result = self.model.module(**inputs)
        logits, _ = first_tensor(result.logits)
        return cast(torch.Tensor, logits)[:, -n_frames:]

    def _describe(
        self, tokens: torch.Tensor, logits: torch.Tensor, norms: torch.Tensor, n_frames: int
    ) -> list[dict[str, Any]]:
        """Per-frame measures and the response of each trial, ready for JSON."""
        log_probability = torch.empty(tokens.shape)
        entropy = torch.empty(tokens.shape)
        for t in range(n_frames):  # frame by frame: logits of all frames at once are large
            log_p = logits[:, t].float().log_softmax(dim=-1)
            log_probability[:, t] = log_p.gather(1, tokens[:, t : t + 1])[:, 0]
            entropy[:, t] = torch.special.entr(log_p.exp()).sum(dim=-1)
        decode = self.model.tokenizer.decode
        rows = []
        for i, ids in enumerate(tokens.tolist()):
            rows.append(
                {
                    "token_id": ids,
                    "token": [decode([token]) for token in ids],
                    "log_probability": log_probability[i].tolist(),
                    "entropy": entropy[i].tolist(),
                    "residual_norm": norms[i].tolist(),
                    "response": decode(ids, skip_special_tokens=True),
                }
            )
        return rows


class _OwnGenerators:
    """Logits processor that samples with one random generator a trial (the Gumbel-max trick).

    Adding Gumbel noise to ``logits / temperature`` and taking the largest is a draw from the
    softmax; with a generator a trial the draw does not depend on the other trials of the batch.
    """

    def __init__(self, temperature: float, seed: int, trials: range) -> None:
        self.temperature = temperature
        self.generators = [np.random.default_rng([seed, trial]) for trial in trials]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return noisy scores (n_trials, vocabulary)."""
        noise = np.stack([g.gumbel(size=scores.shape[-1]) for g in self.generators])
        return scores.float() / self.temperature + torch.from_numpy(noise).to(scores)


def _check_lengths(model: LanguageModel, paradigm: Paradigm, encoded: list[list[int]]) -> None:
    """Raise if a prompt and its frames exceed the context, or a prompt has no token."""
    for row, tokens in enumerate(encoded):
        trial = paradigm.trials.iloc[row]
        if not tokens:
            raise ScanError(f"prompt {trial['stim_id']!r} has no token for this model")
        if model.context and len(tokens) + paradigm.n_frames > model.context:
            raise ScanError(
                f"prompt {trial['stim_id']!r} has {len(tokens)} tokens and {paradigm.n_frames} "
                f"frames follow; {model.name} reads at most {model.context}. Shorten the prompt"
            )


def _check_replay(paradigm: Paradigm, replay: Sequence[Sequence[int]] | None) -> None:
    """Raise unless the replay has n_frames tokens for every trial."""
    if replay is None:
        return
    lengths = {len(tokens) for tokens in replay}
    if len(replay) != paradigm.n_trials or lengths != {paradigm.n_frames}:
        raise ScanError(
            f"replay has {len(replay)} trials of {sorted(lengths)} tokens, the paradigm has "
            f"{paradigm.n_trials} of {paradigm.n_frames}"
        )


def _provenance(
    model: LanguageModel, settings: Settings, *, is_chat: bool, replayed: bool
) -> dict[str, Any]:
    """Everything that decides the values, for sidecars and for resuming."""
    import transformers

    return {
        "Model": {"Subject": model.name, **model.source},
        "Settings": asdict(settings),
        "ChatTemplate": is_chat,
        "Decoding": "teacher-forced replay of another model's tokens"
        if replayed
        else ("greedy" if settings.temperature == 0 else "sampled"),
        "Threads": torch.get_num_threads(),
        "Versions": {
            "llm2nifti": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def _token_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """One row a frame from one row a trial."""
    parts = []
    for trial, row in enumerate(rows):
        columns = {k: row[k] for k in ("token_id", "token", "log_probability", "entropy")}
        part = pd.DataFrame(columns)
        part["trial"], part["position"] = trial, np.arange(len(part))
        part["is_punctuation"] = [int(not any(map(str.isalnum, t))) for t in part["token"]]
        part["residual_norm"] = row["residual_norm"]
        parts.append(part)
    return pd.concat(parts, ignore_index=True)[list(TOKEN_COLUMNS)]
