"""What is the model without these units? The same as under a zero lesion, and smaller if it can be.

A unit of ``heads`` or ``mlp_hidden`` is read by one projection: where its column of weights is
zero, the unit has no effect. Where whole units go from every layer, weights go too.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llm2nifti.geometry import Site
from llm2nifti.interventions import lesion
from llm2nifti.models import FusedError, LoadedModel
from llm2nifti.models.probing import evaluating
from llm2nifti.networks import Network
from llm2nifti.plans import Json
from llm2nifti.surgery.feeding import (
    COMMAND,
    SurgeryError,
    block_of,
    check_fits,
    column_axis,
    owning_sites,
    owns_weights,
    without_weights,
)
from llm2nifti.surgery.shrinking import ConfigChange, ShrinkError, cut_heads, cut_units, shrink

CUTS = {"mlp_hidden": cut_units, "heads": cut_heads}
ROUNDING = 1e-4  # the largest difference of outputs, relative to their size, that it explains


class PruneError(SurgeryError):
    """A network cannot be pruned."""


@dataclass(frozen=True, eq=False)
class Pruned:
    """A model without some units.

    Attributes
    ----------
    model : LoadedModel
        The pruned model; everything that takes a model takes it.
    removed : Network
        The units that were removed, in the space of the model before.
    settings : dict
        What changed in the config: number before (None where it was left open) and after, by the
        config's own key.
    notes : tuple of str
        How each kind of unit was removed, and why not more.
    error : float
        Largest difference between the outputs of the pruned model and of the model under a zero
        lesion on a probe, relative to the largest output.
    n_parameters : (int, int)
        Before and after.
    """

    model: LoadedModel
    removed: Network
    settings: dict[str, tuple[int | None, int]]
    notes: tuple[str, ...]
    error: float
    n_parameters: tuple[int, int]

    def summary(self) -> Json:
        """What was removed, ready for JSON."""
        removed = self.removed
        owning = {site.name for site in owning_sites(removed.brain)}
        profile = removed.profile().rename(columns={"n_active": "n_removed"})
        sizes = profile[profile["site"].isin(owning)].groupby("site", sort=False)
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
    model : LoadedModel
        The model, of the network's space. It is not changed.
    network : Network
        Units of ``heads`` and ``mlp_hidden`` (the inputs of projections).
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
    _check(model, removed)
    module = copy.deepcopy(model.module)
    _zero_columns(module, removed)
    with lesion(model, removed, "zero"):
        expected = outputs(model)
    gap = difference(expected, outputs(replace(model, module=module)))
    if gap > ROUNDING:
        raise PruneError(
            f"without the weights of these units {model.name} computes something else than under a "
            f"zero lesion (outputs differ by {gap:.1e}): the weights are used elsewhere, too"
        )
    module, settings, notes = _shrunk(model, module, removed, expected)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model.module, module))
    digest = hashlib.sha256(np.packbits(removed.units).tobytes()).hexdigest()[:12]
    source = {
        **model.source,
        "Parameters": after,
        "WeightsHash": f"{model.source.get('WeightsHash', 'n/a')} without units {digest}",
    }
    pruned = replace(model, module=module, name=f"{model.name}-pruned", source=source)
    error = difference(expected, outputs(pruned))
    return Pruned(pruned, removed, settings, tuple(notes), error, (before, after))


def to_remove(network: Network, *, keep: bool = False) -> Network:
    """Units that go when a network is pruned, or (`keep`) when it is all that is kept.

    Raises
    ------
    PruneError
        If a unit owns no weights, or nothing goes.
    """
    can_go = owns_weights(network.brain)
    homeless = [name for name, n in without_weights(network).items() if n or not can_go.any()]
    if homeless:
        raise PruneError(
            f"network {network.name!r} has units of {', '.join(homeless)}: these own no weights, "
            f"so they cannot be pruned. Scan units that do, with: {COMMAND}"
        )
    units = can_go & ~network.units if keep else network.units
    if not units.any():
        raise PruneError(f"nothing to prune: network {network.name!r} has {network.n_units} units")
    how = f"all but {network.n_units} units: {network.how}" if keep else network.how
    return replace(network, signs=units.astype(np.int8), how=how, weights=None)


def _check(model: LoadedModel, removed: Network) -> None:
    """Raise unless the model has the weights that the units own, and they can be changed."""
    sites = owning_sites(removed.brain)
    check_fits(model, sites, removed.brain.space)
    for site in sites:
        weight = model.module.get_parameter(f"{site.module}.weight")
        if weight.is_meta or not weight.is_floating_point():
            raise PruneError(
                f"{site.module!r} of {model.name} is offloaded or quantised; load the model whole, "
                "on one device, as float32, bfloat16 or float16"
            )


def members(removed: Network, site: Site) -> NDArray[np.bool_]:
    """(n_units,) which units of one site of one layer belong to a network."""
    return removed.units[removed.brain.slice_of(site)]


@torch.no_grad()
def _zero_columns(module: Any, removed: Network) -> None:
    """Set the weights that read the units to zero."""
    for site in owning_sites(removed.brain):
        weight = module.get_parameter(f"{site.module}.weight")
        index = torch.from_numpy(np.flatnonzero(members(removed, site))).to(weight.device)
        weight.index_fill_(column_axis(module, site.module), index, 0)


def _shrunk(
    model: LoadedModel, module: Any, removed: Network, expected: list[torch.Tensor]
) -> tuple[Any, dict[str, tuple[int | None, int]], list[str]]:
    """The smallest model that still computes the same, what changed in its config, and notes."""
    changed: dict[str, tuple[int | None, int]] = {}
    notes = []
    sites = owning_sites(removed.brain)
    for name in dict.fromkeys(site.name for site in sites):
        remaining = {s.module: ~members(removed, s) for s in sites if s.name == name}
        if all(keep.all() for keep in remaining.values()):
            continue
        before = module.config.get_text_config().to_dict()
        try:
            module, settings = _shrunk_site(model, module, name, remaining, expected)
        except (ShrinkError, FusedError) as error:
            notes.append(f"{name}: columns set to zero, nothing smaller: {error}")
            continue
        pairs = {k: (before.get(k), n) for k, n in settings.items() if before.get(k) != n}
        changed |= pairs
        what = ", ".join(f"{key} {old or 'unset'} -> {new}" for key, (old, new) in pairs.items())
        notes.append(f"{name}: smaller ({what}); the rest of its columns set to zero")
    return module, changed, notes


def _shrunk_site(
    model: LoadedModel,
    module: Any,
    name: str,
    remaining: Mapping[str, NDArray[np.bool_]],
    expected: list[torch.Tensor],
) -> tuple[Any, ConfigChange]:
    """Model with only the remaining units of one site, or ShrinkError."""
    if name not in CUTS:
        raise ShrinkError(f"only {' and '.join(CUTS)} can be cut out")
    cut = CUTS[name](module.config.get_text_config(), remaining)
    blocks = {projection: block_of(model, projection) for projection in remaining}
    smaller, settings = shrink(module, blocks, cut)
    try:
        gap = difference(expected, outputs(replace(model, module=smaller)))
    except (RuntimeError, ValueError, IndexError) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ShrinkError(f"the smaller model does not run ({line})") from error
    if gap > ROUNDING:
        raise ShrinkError(
            f"the smaller model computes something else (outputs differ by {gap:.1e})"
        )
    return smaller, settings


@contextmanager
def _in_float32(module: torch.nn.Module) -> Iterator[None]:
    """Compute in float32, where no rounding hides what a cut changes; weights stay as they are."""
    halves = (torch.float16, torch.bfloat16)
    narrow = [x for x in (*module.parameters(), *module.buffers()) if x.dtype in halves]
    kept = [x.data for x in narrow]
    for x in narrow:
        x.data = x.data.float()
    try:
        yield
    finally:
        for x, data in zip(narrow, kept, strict=True):
            x.data = data


def outputs(model: LoadedModel) -> list[torch.Tensor]:
    """What a model puts out on its probe, computed in float32: logits, or the last hidden state."""
    with evaluating(model.module), _in_float32(model.module):
        results = [one_pass() for one_pass in model.probe_passes()]
    return [out.logits if "logits" in out else out.last_hidden_state for out in results]


def difference(expected: list[torch.Tensor], computed: list[torch.Tensor]) -> float:
    """Largest difference, relative to the largest value."""
    pairs = zip(expected, computed, strict=True)
    shares = [((a - b).abs().max() / a.abs().max().clamp(min=1e-30)).item() for a, b in pairs]
    return float(np.where(np.isnan(shares), np.inf, shares).max())
