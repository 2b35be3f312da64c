"""What does it cost to monitor networks while a model generates?

Default model, batch 1, greedy decoding, the same prompts: bare ``generate`` against ``generate``
inside a `NetworkMonitor` with six networks of 1 % of the units of all attn and mlp sites, with a
stopping criterion that asks after every token and never stops. Run from the repository root on a
quiet machine:

    python benchmarks/monitor.py >> docs/benchmarks.md

Runs in pairs, in turn; with 20 pairs it takes about 3 minutes on 2 cores. Target: at most 1.03
times the time; it is met when the 95 % interval of the median ratio does not exclude it. A second
row times the monitor's own calls alone, as a share of the time of a token.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

import numpy as np
import torch
from timing import (
    N_PAIRS,
    check_positive,
    describe_machine,
    describe_ratio,
    draw_design,
    judge,
    median_interval,
    race,
)

from llm2nifti import geometry, models, stimuli
from llm2nifti.monitor import NetworkMonitor
from llm2nifti.networks import SHARE, Controls, Rule, Thresholds, ranked

TIME_OF_BARE = 1.03
N_CALLS = 200  # passes in which the monitor's own calls are timed


def make_monitor(model):
    """Monitor of as many networks as there are tasks, of random units: what they are is no cost."""
    brain = geometry.layout(model.sites("attn,mlp"))
    rng = np.random.default_rng(0)
    some = [
        ranked(task, brain, rng.normal(size=brain.n_units), Rule("top", share=SHARE))
        for task in stimuli.TASKS
    ]
    never = np.full((1, len(some)), np.inf)
    thresholds = Thresholds(tuple(stimuli.TASKS), 0.05, never, np.ones_like(never))
    baseline = Controls(brain, np.zeros(brain.n_units), np.ones(brain.n_units))
    return NetworkMonitor(model, some, baseline, thresholds=thresholds)


def generate(model, ids, n_tokens, criteria=()):
    """Answer one prompt; (tokens, ids)."""
    with torch.no_grad():
        out = model.module.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=n_tokens,
            min_new_tokens=n_tokens,
            pad_token_id=0,
            stopping_criteria=list(criteria),
        )
    return n_tokens, out


def looks_of(monitor):
    """What the monitor's hooks call, one a module."""
    looks, make = [], monitor._looking
    monitor._looking = lambda where: looks.append(make(where)) or looks[-1]
    with monitor:
        del monitor._looking
    return looks


def own_seconds(monitor, model):
    """Seconds a token of the monitor's calls: every hook on a tensor of its shape, and the end."""
    width = model.module.config.hidden_size
    tensor = torch.randn(1, 1, width)
    ids = torch.ones(1, 1, dtype=torch.int64)
    stop = monitor.stop_when(monitor.names[0])
    looks = looks_of(monitor)
    with torch.no_grad():
        start = time.perf_counter()
        for _ in range(N_CALLS):
            monitor._before(model.module, (), {"input_ids": ids})
            for look in looks:
                look(tensor)
            monitor._after(model.module, (), {})
            stop(ids, None)
    monitor.reset()
    return (time.perf_counter() - start) / N_CALLS


def measure(model, n_pairs, n_tokens):
    """Paragraphs: what was compared, and the table."""
    texts = model.render(list(draw_design(max(n_pairs + 1, 16), 1).trials["prompt"]))
    encoded = [torch.tensor([ids]) for ids in model.encode(texts, rendered=True)]
    monitor = make_monitor(model)

    def bare(pair):
        return generate(model, encoded[pair], n_tokens)

    def watched(pair):
        with monitor:
            return generate(model, encoded[pair], n_tokens, [monitor.stop_when(monitor.names[0])])

    if not torch.equal(bare(n_pairs)[1], watched(n_pairs)[1]):
        sys.exit("the monitor changed what was generated")
    if monitor.scores.shape != (1, n_tokens, len(monitor.names)):
        sys.exit(f"the monitor has scores of shape {monitor.scores.shape}")
    own = own_seconds(monitor, model)
    seconds = race("monitored, bare", watched, bare, n_pairs)
    ratios = seconds[:, 0] / seconds[:, 1]
    _, low, high = median_interval(ratios)
    a, b = 1000 * np.median(seconds, axis=0)
    setting = (
        f"`{model.name}`, batch 1, {n_tokens} tokens of a prompt, greedy; {len(monitor.names)} "
        f"networks in {len(looks_of(monitor))} modules (attn and mlp of every layer), thresholds "
        "asked after every token. Runs in pairs, each with its own prompt, their order swapped "
        "every other pair, after one warm-up each that also checks that the tokens are equal."
    )
    rows = [
        "| time a token | pairs | monitored, ms | bare, ms | ratio (95 % interval) | target "
        "| verdict |",
        "|---|--:|--:|--:|--:|--:|---|",
        f"| monitored / bare `generate` | {n_pairs} | {a:.1f} | {b:.1f} "
        f"| {describe_ratio(ratios)} | at most {TIME_OF_BARE:g} "
        f"| {judge(low, high, TIME_OF_BARE, False)} |",
    ]
    alone = (
        f"The monitor's own calls alone (medians are of whole runs, this is their sum): "
        f"{1000 * own:.2f} ms a token, {100 * 1000 * own / b:.1f} % of a bare token."
    )
    return [setting, "\n".join(rows), alone]


def main():
    """Measure, print a Markdown section."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=N_PAIRS, help="pairs of runs (%(default)s)")
    parser.add_argument("--tokens", type=int, default=48, help="tokens a run (%(default)s)")
    parser.add_argument("--model", default=models.DEFAULT_MODEL, help="model (%(default)s)")
    arguments = parser.parse_args()
    check_positive(parser, arguments)
    load = os.getloadavg()[0]
    model = models.load(arguments.model)
    paragraphs = measure(model, arguments.pairs, arguments.tokens)
    print("\n\n".join(["## Monitor", *paragraphs, describe_machine(load)]))


if __name__ == "__main__":
    main()
