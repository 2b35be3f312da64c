"""What is the model without these units? The same as under a zero lesion, and smaller if it can be.

A unit of ``heads`` or ``mlp_hidden`` is read by one projection: where its column of weights is
zero, the unit has no effect. Where whole units go from every layer, weights go too.
"""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm2nifti import __version__, bids
from llm2nifti.interventions import lesion
from llm2nifti.models import FusedError, LoadedModel
from llm2nifti.models.loading import quiet
from llm2nifti.models.probing import evaluating
from llm2nifti.networks import Network
from llm2nifti.plans import Json
from llm2nifti.surgery import feeding, shrinking
from llm2nifti.surgery.feeding import SurgeryError, owning_sites
from llm2nifti.surgery.shrinking import Remaining, Settings, ShrinkError

RECORD = "prune.json"
CUTS = {"mlp_hidden": shrinking.cut_units, "heads": shrinking.cut_heads}
ROUNDING = 1e-4  # the largest difference of outputs, relative to their size, that it explains


class PruneError(SurgeryError):
    """A network cannot be pruned."""


@dataclass(frozen=True, eq=False)
class Pruned:
    """A model without some units."""

    #: model, removed: the pruned model, and the units that were removed, in the space of the model
    #: before
    model: LoadedModel
    removed: Network
    #: numbers of the config that changed: before (None where it was left open) and after
    settings: Settings
    notes: tuple[str, ...]  #: how each kind of unit was removed, and why not more
    #: largest difference between the outputs of the pruned model and of the model under a zero
    #: lesion on a probe, relative to the largest output
    error: float
    n_parameters: tuple[int, int]  #: (int, int); before and after

    def summary(self) -> Json:
        """What was removed, ready for JSON."""
        removed = self.removed
        names = [site.name for site in owning_sites(removed.brain)]
        profile = removed.profile().rename(columns={"n_active": "n_removed"})
        sizes = profile[profile["site"].isin(names)].groupby("site", sort=False)
        return {
            "network": removed.name,
            "how": removed.how,
            "space": removed.brain.space,
            "n_removed": removed.n_units,
            "sites": sizes[["n_units", "n_removed"]].sum().to_dict(orient="index"),
            "settings": {key: list(pair) for key, pair in self.settings.items()},
            "notes": list(self.notes),
            "parameters": list(self.n_parameters),
            "largest_relative_difference_from_zero_lesion": self.error,
        }

    def __repr__(self) -> str:
        """Say what was removed and what it saved."""
        before, after = self.n_parameters
        text = f"Pruned: {self.model.name!r} has {self.removed.n_units} units less"
        text += f", {before:,} -> {after:,} parameters ({after / before:.1%})"
        return "\n  ".join([text, *self.notes])


def prune(model: LoadedModel, network: Network, *, keep: bool = False) -> Pruned:
    """Remove the units of a network, or all others.

    Parameters
    ----------
    model, network : LoadedModel, Network
        The model, which is not changed, and units of its ``heads`` and ``mlp_hidden`` (the inputs
        of projections).
    keep : bool, default=False
        Keep these units and remove the others of all such sites that were recorded.

    Returns
    -------
    Pruned
        Its model computes what the model computes under ``lesion(model, network, "zero")``.
        Columns of the removed units are zero. Where units are missing from every layer, the model
        is built anew, as narrow as the layer that keeps most; heads go by whole key-value groups.
        What cannot be built, or computes something else on a probe, keeps its zeros; ``notes``
        says so.

    Raises
    ------
    PruneError
        If a unit owns no weights, or nothing is removed.
    SurgeryError
        If the network is of another model.

    Examples
    --------
    >>> small = surgery.prune(model, network)  # doctest: +SKIP
    >>> surgery.save(small, "small")  # doctest: +SKIP
    """
    removed = to_remove(network, keep=keep)
    remaining = _remaining(model, removed)
    with lesion(model, removed, "zero"):
        expected = outputs(model)

    def gap_of(module: Any) -> float:
        return difference(expected, outputs(replace(model, module=module)))

    module = _with_zeros(model.module, remaining)
    gap = gap_of(module)
    if gap > ROUNDING:
        raise PruneError(
            f"without the weights of these units {model.name} computes something else than under a "
            f"zero lesion (outputs differ by {gap:.1e}): the weights are used elsewhere, too"
        )
    settings: Settings = {}
    notes = []
    for name, masks in remaining.items():
        if not removed.at(name).n_units:
            continue
        try:
            module, changed, gap = _smaller(model, module, name, masks, gap_of)
        except (ShrinkError, FusedError) as error:
            notes.append(f"{name}: columns set to zero, nothing smaller: {error}")
            continue
        settings |= changed
        what = ", ".join(f"{key} {old or 'unset'} -> {new}" for key, (old, new) in changed.items())
        notes.append(f"{name}: smaller ({what}); the rest of its columns set to zero")
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model.module, module))
    digest = hashlib.sha256(np.packbits(removed.units).tobytes()).hexdigest()[:12]
    weights = f"{model.source.get('WeightsHash', 'n/a')} without units {digest}"
    source = {**model.source, "Parameters": after, "WeightsHash": weights}
    pruned = replace(model, module=module, name=f"{model.name}-pruned", source=source)
    return Pruned(pruned, removed, settings, tuple(notes), gap, (before, after))


def to_remove(network: Network, *, keep: bool = False) -> Network:
    """Units that go when a network is pruned, or (`keep`) when it is all that is kept.

    PruneError if a unit owns no weights, or nothing goes.
    """
    sites = owning_sites(network.brain)
    homeless = [name for name, n in feeding.without_weights(network).items() if n or not sites]
    if homeless:
        raise PruneError(
            f"network {network.name!r} has units of {', '.join(homeless)}: these own no weights, "
            f"so they cannot be pruned. Scan units that do, with: {feeding.COMMAND}"
        )
    signs = (network.units != keep).astype(np.int8)
    how = f"all but {network.n_units} units: {network.how}" if keep else network.how
    removed = feeding.owning(replace(network, signs=signs, how=how, weights=None))
    if not removed.n_units:
        raise PruneError(f"nothing to prune: network {network.name!r} has {network.n_units} units")
    return removed


def _remaining(model: LoadedModel, removed: Network) -> dict[str, Remaining]:
    """What remains, by the name of the site; errors if the weights cannot be changed."""
    sites = owning_sites(removed.brain)
    feeding.check_fits(model, sites, removed.brain.space)
    remaining: dict[str, Remaining] = {}
    for site in sites:
        weight = model.module.get_parameter(f"{site.module}.weight")
        if weight.is_meta or not weight.is_floating_point():
            raise PruneError(
                f"{site.module!r} of {model.name} is offloaded or quantised; load the model whole, "
                "on one device, as float32, bfloat16 or float16"
            )
        masks = remaining.setdefault(site.name, {})
        masks[site.module] = ~removed.units[removed.brain.slice_of(site)]
    return remaining


@torch.no_grad()
def _with_zeros(module: torch.nn.Module, remaining: Mapping[str, Remaining]) -> Any:
    """Copy of a model in which the weights that read the other units are zero."""
    module = copy.deepcopy(module)
    for projection, keep in (item for masks in remaining.values() for item in masks.items()):
        layer: Any = module.get_submodule(projection)
        gone = torch.from_numpy(np.flatnonzero(~keep)).to(layer.weight.device)
        feeding.out_in(layer, layer.weight).index_fill_(1, gone, 0)
    return module


def _smaller(
    model: LoadedModel, module: Any, name: str, masks: Remaining, gap_of: Callable[[Any], float]
) -> tuple[Any, Settings, float]:
    """Model with the remaining units of one site, what its config changed, its gap; ShrinkError."""
    if name not in CUTS:
        raise ShrinkError(f"only {' and '.join(CUTS)} can be cut out")
    cut = CUTS[name](module.config.get_text_config(), masks)
    blocks = {projection: feeding.block_of(model, projection) for projection in masks}
    smaller, changed = shrinking.shrink(module, blocks, cut)
    try:
        gap = gap_of(smaller)
    except (RuntimeError, ValueError, IndexError) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ShrinkError(f"the smaller model does not run ({line})") from error
    if gap > ROUNDING:
        raise ShrinkError(
            f"the smaller model computes something else (outputs differ by {gap:.1e})"
        )
    return smaller, changed, gap


def outputs(model: LoadedModel) -> list[torch.Tensor]:
    """What a model puts out on its probe: logits, or the last hidden state.

    Computed in float32, where no rounding hides what a cut changes; weights stay as they are.
    """
    halves, module = (torch.float16, torch.bfloat16), model.module
    kept = {x: x.data for x in (*module.parameters(), *module.buffers()) if x.dtype in halves}
    with evaluating(module):
        try:
            for x, data in kept.items():
                x.data = data.float()
            results = [one_pass() for one_pass in model.probe_passes()]
        finally:
            for x, data in kept.items():
                x.data = data
    return [out.logits if "logits" in out else out.last_hidden_state for out in results]


def difference(expected: list[torch.Tensor], computed: list[torch.Tensor]) -> float:
    """Largest difference, relative to the largest value."""
    pairs = zip(expected, computed, strict=True)
    shares = [((a - b).abs().max() / a.abs().max().clamp(min=1e-30)).item() for a, b in pairs]
    return float(np.where(np.isnan(shares), np.inf, shares).max())


def save(
    pruned: Pruned, folder: Path | str, *, overwrite: bool = False, record: Json | None = None
) -> Path:
    """Write a pruned model as safetensors, with its config, tokenizer and ``prune.json``.

    ``transformers.AutoModelForCausalLM.from_pretrained(folder)`` reads it, and so does
    ``llm2nifti ... --model folder``.

    Parameters
    ----------
    pruned, folder : Pruned, path-like
        From `prune`, and a new folder; it appears when all of it is written.
    overwrite : bool, default=False
        Replace a folder that `save` wrote before.
    record : dict, optional
        What else to put into ``prune.json``.

    Raises
    ------
    PruneError
        If the folder is there and may not be replaced.

    Examples
    --------
    >>> surgery.save(surgery.prune(model, network), "small")  # doctest: +SKIP
    """
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}-new")
    old = folder.with_name(f".{folder.name}-old")
    _tidy(folder, temporary, old)  # what a killed process left
    check_free(folder, overwrite=overwrite)
    try:
        temporary.mkdir(parents=True)
        with quiet():
            for part in (pruned.model.module, pruned.model.tokenizer, pruned.model.processor):
                if part is not None:
                    part.save_pretrained(temporary)
        n_bytes = sum(path.stat().st_size for path in temporary.glob("*.safetensors"))
        content = {**pruned.summary(), "bytes": n_bytes, "llm2nifti": __version__}
        bids.write_json(temporary / RECORD, temporary, content | (record or {}))
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
    finally:
        _tidy(folder, temporary, old)
    return folder


def _tidy(folder: Path, temporary: Path, old: Path) -> None:
    """Leave one model in place: the new one or, where it is not complete, the old one."""
    shutil.rmtree(temporary, ignore_errors=True)
    if old.exists() and not folder.exists():  # stopped between the two renames
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Raise PruneError unless a folder can be written; before long work."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / RECORD).exists():
        raise PruneError(f"{folder} is there and holds no pruned model; choose another folder")
    if not overwrite:
        raise PruneError(f"{folder} is there already; use overwrite=True, or another folder")


def read_record(folder: Path) -> Json:
    """Content of ``prune.json``; empty where there is none."""
    path = folder / RECORD
    return bids.read_json(path) if path.exists() else {}
