"""What does the model answer, and which networks are active meanwhile?"""

from __future__ import annotations

from dataclasses import dataclass

from llm2nifti.models import LoadedModel
from llm2nifti.monitor.watching import NetworkMonitor
from llm2nifti.scanner import answer


@dataclass(frozen=True)
class Response:
    """An answer and what was active while it was given.

    Attributes
    ----------
    prompt, response : str
        What was asked and answered.
    scores : dict of str to float
        Mean score of each network over the answer's tokens.
    top : str or None
        The network furthest above its threshold; None where none is above.
    stopped : bool
        Whether the answer ended because a network was above its threshold.
    """

    prompt: str
    response: str
    scores: dict[str, float]
    top: str | None
    stopped: bool = False


@dataclass(frozen=True)
class Unanswered:
    """A prompt that the model could not answer.

    Attributes
    ----------
    prompt : str
        What was asked.
    error : str
        Why there is no answer.
    """

    prompt: str
    error: str


def respond(
    model: LoadedModel,
    monitor: NetworkMonitor,
    prompt: str,
    *,
    n_tokens: int,
    template: str = "auto",
    stop_when: str | None = None,
) -> Response:
    """Let the model answer one prompt, greedily, as in a scan, until it ends by itself.

    Parameters
    ----------
    model : LoadedModel
        The model.
    monitor : NetworkMonitor
        A monitor of this model that has been entered and has thresholds.
    prompt : str
        What to ask.
    n_tokens : int
        Most tokens of the answer.
    template : {"auto", "chat", "none"}
        Whether the prompt is wrapped in the model's chat template.
    stop_when : str, optional
        Network whose activity ends the answer.

    Returns
    -------
    Response

    Raises
    ------
    llm2nifti.scanner.ScanError
        If the prompt has no token, or does not fit into the model's context.
    """
    stop = [] if stop_when is None else [monitor.stop_when(stop_when)]
    response = answer(model, prompt, n_tokens=n_tokens, template=template, stopping=stop)
    means = dict(zip(monitor.names, monitor.means[0].tolist(), strict=True))
    is_stopped = bool(stop) and bool(monitor.above()[0, monitor.names.index(str(stop_when))])
    return Response(prompt, response, means, monitor.top[0], is_stopped)
