"""What does the model say when it is pushed along the effect of a task?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nibabel as nib

from llm2nifti import bids, geometry, networks
from llm2nifti.bids import Session
from llm2nifti.interventions import steer
from llm2nifti.networks import Network
from llm2nifti.progress import track
from llm2nifti.scanner import answer
from llm2nifti.study.conditions import Condition
from llm2nifti.study.errors import StudyError
from llm2nifti.study.reloading import reload


def steered_answers(
    session: Session,
    task: str,
    prompts: Sequence[str],
    strengths: Sequence[float],
    *,
    n_tokens: int = 40,
    **options: Any,
) -> list[dict[str, Any]]:
    """Answers to prompts while the model is steered along a task's effect, and without.

    Parameters
    ----------
    session : Session
        Runs of one analysed model.
    task : str
        Task whose effect is added, at the units that respond most.
    prompts : sequence of str
        What to ask.
    strengths : sequence of float
        How often to add the effect; 0 is the model as it is.
    n_tokens : int, default=40
        Most tokens of an answer.
    **options : dict
        ``sites`` to steer at, by default all but those of the stream; ``share`` of their units, by
        default 0.01; ``model_name``, ``device``, ``trust_remote_code``: see
        `llm2nifti.study.reloading.reload`;
        ``quiet``: show no progress bar.

    Returns
    -------
    list of dict
        ``prompt, strength, response``.

    Raises
    ------
    llm2nifti.bids.NoSuchRunError
        If the task was not recorded.
    StudyError
        If it was not analysed.
    """
    sites = tuple(options.get("sites", ()))
    condition = Condition(sites, "steer", options.get("share", 0.01))
    effect_img, network = _effect_of(session, task, condition)
    model = reload(
        session.first,
        name=options.get("model_name"),
        device=options.get("device", "cpu"),
        trust_remote_code=options.get("trust_remote_code", False),
    )
    template = session.settings["template"]
    todo = [(prompt, strength) for prompt in prompts for strength in strengths]
    out = []
    for prompt, strength in track(todo, "steer", quiet=options.get("quiet", False)):
        with steer(model, effect_img, strength, network=network):
            response = answer(model, prompt, n_tokens=n_tokens, template=template)
        out.append({"prompt": prompt, "strength": strength, "response": response})
    return out


def _effect_of(
    session: Session, task: str, condition: Condition
) -> tuple[nib.Nifti1Image, Network]:
    """Effect map of a task, as the analysis wrote it, and the units with the largest |t|."""
    run = session.of(task).first
    paths = run.paths
    for path in (paths.stat_map("effect"), paths.stat_map("t")):
        if not path.exists():
            raise StudyError(
                f"task {task!r} has no {path.name}; make it with: llm2nifti glm {paths.root}"
            )
    brain = run.brain
    t = geometry.from_img(brain, bids.read_img(paths.stat_map("t")))
    network = networks.ranked(run.task, brain, t, condition.rule(brain))
    return bids.read_img(paths.stat_map("effect")), network
