"""What was measured of an intervention: effects on text, and how they compare."""

from __future__ import annotations

from dataclasses import dataclass

from llm2nifti.networks.dissociation import DoubleDissociation, Effect, Selectivity


@dataclass(frozen=True)
class Sizes:
    """How much was measured.

    Attributes
    ----------
    n_random : int
        Matched random networks for every network.
    n_prompts : int
        Prompts of each task and run.
    seed : int
        Seed of the random networks.
    """

    n_random: int
    n_prompts: int
    seed: int = 0


@dataclass(frozen=True)
class Measured:
    """What one condition does.

    Attributes
    ----------
    sites, mode, share, strength, spare_template
        The condition; see `llm2nifti.experiments.lesions.conditions.Condition`.
    effects : dict of str to dict of str to Effect
        By network and task.
    selectivity : Selectivity or None
        Where networks of several tasks were lesioned.
    double_dissociations : list of DoubleDissociation or None
        Of every pair of them.
    """

    sites: tuple[str, ...]
    mode: str
    effects: dict[str, dict[str, Effect]]
    share: float | None = None
    strength: float = 1.0
    spare_template: bool = False
    selectivity: Selectivity | None = None
    double_dissociations: list[DoubleDissociation] | None = None

    @property
    def tasks(self) -> list[str]:
        """Whose text was read, control among them."""
        return list(next(iter(self.effects.values())))


@dataclass(frozen=True)
class Copy:
    """The same of the untrained copy.

    Attributes
    ----------
    conditions : list of Measured
        As of the model.
    """

    conditions: list[Measured]
