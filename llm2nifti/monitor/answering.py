"""What does the model answer, and which networks are active meanwhile?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llm2nifti.bids import Session
from llm2nifti.evidence import calibrated, gather
from llm2nifti.interventions.reloading import reload
from llm2nifti.models import LoadedModel
from llm2nifti.monitor.watching import MonitorError, NetworkMonitor
from llm2nifti.networks import RATE
from llm2nifti.plans import WithModel
from llm2nifti.scanner import ScanError, answer


@dataclass(frozen=True)
class Response:
    """An answer and what was active while it was given."""

    prompt: str  #: prompt, response: what was asked and answered
    response: str
    #: scores, top: mean score of each network over the answer's tokens, and the one furthest above
    #: its threshold, if any is above
    scores: dict[str, float]
    top: str | None
    stopped: bool = False  #: whether the answer ended because a network was above its threshold


@dataclass(frozen=True)
class Unanswered:
    """A prompt that the model could not answer."""

    prompt: str  #: prompt, error: what was asked, and why there is no answer
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
    model, monitor : LoadedModel, NetworkMonitor
        The model, and a monitor of it that has been entered and has thresholds.
    prompt, n_tokens : str, int
        What to ask, and the most tokens of the answer.
    template : {"auto", "chat", "none"}
        Whether the prompt is wrapped in the model's chat template.
    stop_when : str, optional
        Network whose activity ends the answer.

    Raises
    ------
    llm2nifti.scanner.ScanError
        If the prompt has no token, or does not fit into the model's context.
    """
    stop = [] if stop_when is None else [monitor.stop_when(stop_when)]
    response = answer(model, prompt, n_tokens=n_tokens, template=template, stopping=stop)
    means = dict(zip(monitor.names, monitor.means[0].tolist(), strict=True))
    is_stopped = stop_when is not None and monitor.above()[0, monitor.names.index(stop_when)]
    return Response(prompt, response, means, monitor.top[0], bool(is_stopped))


@contextmanager
def prepared(
    runs: Session, plan: WithModel, *, rate: float = RATE, verbose: int = 1
) -> Iterator[tuple[LoadedModel, NetworkMonitor]]:
    """Load the model of a recording, and enter a monitor of the networks of its tasks.

    The threshold of a network lets it pass on `rate` of the control prompts. `plan` says what to
    load, by default the model that was scanned; other weights make a warning.
    """
    if runs.settings.get("mode", "generate") != "generate":
        raise MonitorError(
            f"{runs.root} was recorded while the model read; the monitor needs networks of a model "
            "that generates: scan with mode='generate'"
        )
    if runs.first.frames != "token":
        raise MonitorError(
            f"{runs.root} keeps one volume a trial; thresholds for every token need the tokens: "
            "scan with frames='token'"
        )
    # A fine-tuned model may be watched with the networks of its ancestor.
    loaded = reload(runs.first, plan, other_weights=True)
    evidence = gather(runs, verbose=verbose)
    numbers = evidence.numbers
    networks, controls = evidence.networks(numbers), evidence.controls(numbers)
    thresholds = calibrated(evidence, runs, rate=rate, verbose=verbose)
    with NetworkMonitor(loaded, networks, controls, thresholds=thresholds) as watching:
        yield loaded, watching


def answers(
    prompts: Iterable[str | bytes], loaded: LoadedModel, watching: NetworkMonitor, **options: Any
) -> Iterator[Response | Unanswered]:
    """Answer prompts one after another, as they come; empty ones are skipped.

    Lines are text or UTF-8, and space around them does not count. `options` are those of `respond`;
    a line that is no text, or too long for the model, is Unanswered.
    """
    for line in prompts:
        raw = line if isinstance(line, bytes) else line.encode("utf-8", "surrogatepass")
        prompt = raw.decode("utf-8", "replace").strip()
        if not prompt:
            continue
        try:
            raw.decode("utf-8")
            yield respond(loaded, watching, prompt, **options)
        except UnicodeDecodeError as error:
            what = f"byte {error.start + 1} is not UTF-8 ({error.reason})"
            yield Unanswered(prompt, f"the prompt is no text: {what}")
        except ScanError as error:
            yield Unanswered(prompt, str(error))
