"""Which networks of a dataset are active while its model answers?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm2nifti import bids
from llm2nifti.models import LoadedModel
from llm2nifti.monitor import MonitorError, NetworkMonitor, Response, Unanswered, respond
from llm2nifti.networks import RATE
from llm2nifti.scanner import ScanError
from llm2nifti.study.readouts import calibrated, gather
from llm2nifti.study.reloading import reload


@contextmanager
def prepared(
    root: Path,
    *,
    model: str | None = None,
    subject: str | None = None,
    session: str | None = None,
    rate: float = RATE,
    quiet: bool = False,
    **options: Any,
) -> Iterator[tuple[LoadedModel, NetworkMonitor]]:
    """Load a dataset's model and monitor the networks of its tasks.

    Parameters
    ----------
    root : Path
        Root of the dataset.
    model : str, optional
        What to load; by default the model that was scanned. Other weights make a warning.
    subject, session : str, optional
        See `llm2nifti.bids.read`.
    rate : float, default=0.05
        Share of control prompts on which the threshold of a network lets it pass.
    quiet : bool, default=False
        Show no progress bars.
    **options : dict
        ``device``, ``trust_remote_code``: see `llm2nifti.models.load`.

    Yields
    ------
    LoadedModel, NetworkMonitor
        The monitor has been entered.

    Raises
    ------
    MonitorError
        If the dataset does not fit the model.
    """
    runs = bids.session(root, subject=subject, session=session)
    if runs.settings.get("mode", "generate") != "generate":
        raise MonitorError(
            f"{root} was recorded while the model read; the monitor needs networks of a model that "
            "generates: scan with mode='generate'"
        )
    if runs.first.frames != "token":
        raise MonitorError(
            f"{root} keeps one volume a trial; thresholds for every token need the tokens: scan "
            "with frames='token'"
        )
    # A fine-tuned model may be watched with the networks of its ancestor.
    loaded = reload(runs.first, name=model, other_weights=True, **options)
    evidence = gather(runs, quiet=quiet)
    numbers = evidence.numbers
    watching = NetworkMonitor(
        loaded,
        evidence.networks(numbers),
        evidence.controls(numbers),
        thresholds=calibrated(evidence, runs, rate=rate, quiet=quiet),
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
