"""What does the model say when it is pushed along the effect of a task?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nibabel as nib
from tqdm import tqdm

from llm2nifti import networks
from llm2nifti.bids import Run
from llm2nifti.interventions import steer
from llm2nifti.networks import Network
from llm2nifti.scanner.answering import answer
from llm2nifti.study.bench import default_sites
from llm2nifti.study.lock import StudyError
from llm2nifti.study.reloading import reload


def steered_answers(
    runs: Sequence[Run],
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
    runs : sequence of Run
        Runs of one analysed model.
    task : str
        Task whose effect is added, at the units of its network that are no part of the stream.
    prompts : sequence of str
        What to ask.
    strengths : sequence of float
        How often to add the effect; 0 is the model as it is.
    n_tokens : int, default=40
        Most tokens of an answer.
    **options : dict
        ``sites`` to steer at; ``model_name``, ``device``: see `llm2nifti.study.reloading.reload`;
        ``quiet``: show no progress bar.

    Returns
    -------
    list of dict
        ``prompt, strength, response``.

    Raises
    ------
    StudyError
        If the task was not recorded or not analysed.
    """
    effect_img, network = _effect_of(runs, task, options.get("sites", ()))
    name, device = options.get("model_name"), options.get("device", "cpu")
    model = reload(runs[0], name=name, device=device)
    template = runs[0].sidecar["Settings"]["template"]
    todo = [(prompt, strength) for prompt in prompts for strength in strengths]
    out = []
    for prompt, strength in tqdm(todo, desc="steer", disable=options.get("quiet") or None):
        with steer(model, effect_img, strength, network=network):
            response = answer(model, prompt, n_tokens=n_tokens, template=template)
        out.append({"prompt": prompt, "strength": strength, "response": response})
    return out


def _effect_of(
    runs: Sequence[Run], task: str, sites: Sequence[str]
) -> tuple[nib.Nifti1Image, Network]:
    """Effect map and network of a task, as the analysis wrote them."""
    own = [run for run in runs if run.task == task]
    if not own:
        there = ", ".join(dict.fromkeys(run.task for run in runs))
        raise StudyError(f"no task {task!r} in the dataset; there are: {there}")
    paths = own[0].paths
    for path in (paths.stat_map("effect"), paths.network()):
        if not path.exists():
            raise StudyError(
                f"task {task!r} has no {path.name}; make it with: llm2nifti glm {paths.root}"
            )
    brain = own[0].brain
    network = networks.from_mask(brain, nib.load(paths.network()), name=task)
    return nib.load(paths.stat_map("effect")), network.at(*(sites or default_sites(own[0])))
