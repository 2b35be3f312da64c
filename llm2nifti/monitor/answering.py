"""Which networks of a dataset are active while its model answers?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from llm2nifti.bids import Session
from llm2nifti.evidence import calibrated, gather
from llm2nifti.interventions.reloading import reload
from llm2nifti.models import LoadedModel
from llm2nifti.monitor.responding import Response, Unanswered, respond
from llm2nifti.monitor.watching import MonitorError, NetworkMonitor
from llm2nifti.networks import RATE
from llm2nifti.plans import WithModel
from llm2nifti.scanner import ScanError


@contextmanager
def prepared(
    runs: Session, plan: WithModel, *, rate: float = RATE, verbose: int = 1
) -> Iterator[tuple[LoadedModel, NetworkMonitor]]:
    """Load a dataset's model and monitor the networks of its tasks.

    Parameters
    ----------
    runs : Session
        One model's recording.
    plan : WithModel
        What to load, by default the model that was scanned (other weights make a warning), and
        where to put it.
    rate : float, default=0.05
        Share of control prompts on which the threshold of a network lets it pass.
    verbose : int, default=1
        0 shows no progress.

    Yields
    ------
    LoadedModel, NetworkMonitor
        The monitor has been entered.

    Raises
    ------
    MonitorError
        If the dataset does not fit the model.
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
    watching = NetworkMonitor(
        loaded,
        evidence.networks(numbers),
        evidence.controls(numbers),
        thresholds=calibrated(evidence, runs, rate=rate, verbose=verbose),
    )
    with watching:
        yield loaded, watching


def answers(
    prompts: Iterable[str | bytes],
    loaded: LoadedModel,
    watching: NetworkMonitor,
    *,
    n_tokens: int,
    template: str = "auto",
    stop_when: str | None = None,
) -> Iterator[Response | Unanswered]:
    """Answer prompts one after another, as they come; empty ones are skipped.

    Parameters
    ----------
    prompts : iterable of str or bytes
        Lines, as text or in UTF-8; space around them does not count.
    loaded, watching : LoadedModel, NetworkMonitor
        From `prepared`.
    n_tokens : int
        Most tokens of an answer.
    template : {"auto", "chat", "none"}
        Whether prompts are wrapped in the model's chat template.
    stop_when : str, optional
        Network whose activity ends an answer.

    Yields
    ------
    Response or Unanswered
        The latter for a line that is no text, or too long for the model.
    """
    for line in prompts:
        raw = line if isinstance(line, bytes) else line.encode("utf-8", "surrogatepass")
        prompt = raw.decode("utf-8", "replace").strip()
        if not prompt:
            continue
        options: dict[str, Any] = {"n_tokens": n_tokens, "template": template}
        try:
            raw.decode("utf-8")
            yield respond(loaded, watching, prompt, **options, stop_when=stop_when)
        except UnicodeDecodeError as error:
            what = f"byte {error.start + 1} is not UTF-8 ({error.reason})"
            yield Unanswered(prompt, f"the prompt is no text: {what}")
        except ScanError as error:
            yield Unanswered(prompt, str(error))
