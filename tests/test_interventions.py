"""Interventions against the same change made to the weights by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import tiny
import torch

from llm2nifti import geometry, interventions, models, networks, paradigm, scanner
from llm2nifti.interventions import InterventionError, lesion, scale, steer
from llm2nifti.networks import Controls

WITH_PROJECTIONS = [kind for kind in tiny.CONFIGS if kind not in ("vit", "llava")]
HIDDEN = {
    "mamba": "mixer_hidden",
    "mixtral": "heads",
    "t5": "heads,cross_heads,mlp_hidden",
}


def brain_of(model, sites):
    return geometry.layout(model.sites(sites))


def some_units(brain, seed=0, share=0.2):
    """Random network with units of both signs."""
    rng = np.random.default_rng(seed)
    signs = np.where(rng.random(brain.n_units) < share, rng.choice([-1, 1], brain.n_units), 0)
    return networks.Network("some", brain, signs.astype(np.int8))


def answers(model, module=None):
    """Logits, or the last hidden state of a model without any, for two prompts."""
    ids = torch.tensor([[5, 9, 30, 7, 2], [8, 3, 3, 11, 40]])
    inputs = {"input_ids": ids}
    if model.kind == "seq2seq":
        inputs["decoder_input_ids"] = ids
    with torch.no_grad():
        out = (module or model.module)(**inputs)
    return out.logits if "logits" in out else out.last_hidden_state


def edited_copy(model, network, change):
    """Copy of the model whose projections `change(weight, bias, units, where)` edited in place.

    The weight is (out, in) as in torch.nn.Linear.
    """
    module = copy.deepcopy(model.module)
    for site in network.brain.sites:
        layer = module.get_submodule(site.module)
        inside = network.brain.slice_of(site)
        units = torch.from_numpy(np.flatnonzero(network.units[inside]))
        is_linear = isinstance(layer, torch.nn.Linear)
        weight = layer.weight.data if is_linear else layer.weight.data.T  # GPT-2 keeps (in, out)
        change(weight, layer.bias, units, slice(inside.start, inside.stop))
    return module


def of_projections(model, role_names=("attn", "mlp", "mixer")):
    """Brain of the outputs of the projections themselves, by module name."""
    blocks = model.stacks("generate" if "generate" in model.modes() else "read")[-1].blocks
    names = [b.projections[r] for b in blocks for r in role_names if r in b.projections]
    return brain_of(model, "regex:" + "|".join(n.replace(".", r"\.") for n in names))


@pytest.mark.parametrize("kind", WITH_PROJECTIONS)
def test_zeroed_hidden_units_equal_zeroed_columns(tiny_models, kind):
    model = tiny_models(kind)
    network = some_units(brain_of(model, HIDDEN.get(kind, "heads,mlp_hidden")))

    def zero_columns(weight, _bias, units, _where):
        weight[:, units] = 0

    expected = answers(model, edited_copy(model, network, zero_columns))
    before = answers(model)
    with lesion(model, network):
        found = answers(model)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, before, atol=1e-3)
    assert torch.equal(answers(model), before)


@pytest.mark.parametrize("kind", WITH_PROJECTIONS)
@pytest.mark.parametrize("mode", ["zero", "mean", "resample", "scale", "steer"])
def test_outputs_equal_edited_rows_and_biases(tiny_models, kind, mode):
    model = tiny_models(kind)
    network = some_units(of_projections(model))
    values = np.random.default_rng(1).normal(size=network.brain.n_units).astype(np.float32)
    controls = Controls.of(network.brain, values[None])  # one trial: resampling gives it always
    module = copy.deepcopy(model.module)
    for site in network.brain.sites:
        layer, inside = module.get_submodule(site.module), network.brain.slice_of(site)
        units = torch.from_numpy(np.flatnonzero(network.units[inside]))
        own = torch.from_numpy(values[inside])[units]
        weight = layer.weight.data if isinstance(layer, torch.nn.Linear) else layer.weight.data.T
        if layer.bias is None:
            layer.bias = torch.nn.Parameter(torch.zeros(site.n_units))
        bias = layer.bias.data
        if mode == "steer":
            bias[units] += 0.5 * own
        else:
            weight[units] *= 3 if mode == "scale" else 0
            bias[units] = 3 * bias[units] if mode == "scale" else own * (mode != "zero")
    expected = answers(model, module)
    contexts = {
        "scale": lambda: scale(model, network, 3),
        "steer": lambda: steer(model, geometry.to_img(network.brain, values), 0.5, network=network),
    }
    make = contexts.get(mode, lambda: lesion(model, network, mode, controls=controls))
    with make():
        found = answers(model)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [k for k in tiny.CONFIGS if k not in ("bert", "vit", "llava")])
def test_a_scan_shows_the_lesion_and_nothing_before_it(tiny_models, kind):
    """Also with the prompts' common beginning read ahead, and for what is no module's output."""
    model = tiny_models(kind)
    sites = {"mixtral": "attn,mlp,resid,experts"}.get(kind, "default")
    design = paradigm.blocks("pathology", n_blocks=1, trials_per_block=2, n_frames=3)
    settings = scanner.Settings(sites=sites)
    tokens = [[7, 8, 9]] * design.n_trials

    def scan():
        return scanner.scan(
            model, design, settings=settings, replay=tokens, on_trials=lambda _n: None
        )

    before = scan()
    network = some_units(before.brain)
    last = max(site.layer for site in before.brain.sites if site.name == "resid")
    layer = np.repeat(
        [s.layer for s in before.brain.sites], [s.n_units for s in before.brain.sites]
    )
    signs = np.where(layer == last, network.signs, 0).astype(np.int8)
    network = networks.Network("last layer", before.brain, signs)
    assert network.n_units
    with lesion(model, network):
        after = scan()
    values, intact = np.asarray(after.values), np.asarray(before.values)
    assert (values[:, network.units] == 0).all()
    assert np.abs(intact[:, network.units]).max() > 0
    np.testing.assert_allclose(values[:, layer < last], intact[:, layer < last], atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "vit", "llava"])
def test_what_only_reads_is_lesioned_too(tiny_models, image_table, kind):
    model, sizes = tiny_models(kind), {"n_blocks": 1, "trials_per_block": 2}
    shown = ("pathology", None) if kind == "bert" else ("discs", image_table)
    design = paradigm.blocks(shown[0], table=shown[1], **sizes)
    settings = scanner.Settings(mode="read")

    def scan():
        return scanner.scan(model, design, settings=settings, on_trials=lambda _n: None)

    before = scan()
    network = some_units(before.brain).at("mlp")
    with lesion(model, network):
        values = np.asarray(scan().values)
    assert (values[:, network.units] == 0).all()
    first = before.brain.slice_of(next(s for s in before.brain.sites if s.name == "attn"))
    np.testing.assert_allclose(values[:, first], np.asarray(before.values)[:, first], atol=1e-5)
    last = before.brain.slice_of([s for s in before.brain.sites if s.name == "resid"][-1])
    assert np.abs(values[:, last] - np.asarray(before.values)[:, last]).max() > 1e-3


def test_generation_in_a_batch_equals_each_prompt_alone(tiny_model):
    """Lesioned, too."""
    network = some_units(brain_of(tiny_model, "attn,mlp"))
    design = paradigm.blocks("pathology", n_blocks=1, trials_per_block=2, n_frames=4)

    def tokens(batch_size):
        settings = scanner.Settings(sites="resid", batch_size=batch_size)
        result = scanner.scan(tiny_model, design, settings=settings, on_trials=lambda _n: None)
        return result.tokens["token_id"].tolist()

    intact = tokens(8)
    with lesion(tiny_model, network):
        assert tokens(8) == tokens(1) != intact


@pytest.fixture
def planted(tiny_folders):
    """Tiny Llama, and a network of one MLP unit that is wired to one token."""
    model = models.load(str(tiny_folders["llama"]))
    brain = brain_of(model, "mlp_hidden")
    down = model.module.model.layers[-1].mlp.down_proj
    head = model.module.lm_head
    with torch.no_grad():  # whatever is read, unit 3 writes the direction of token 42
        model.module.model.layers[-1].mlp.up_proj.weight[3] = 0
        down.weight[:, 3] = 4 * head.weight[42] / head.weight[42].norm()
    signs = np.zeros(brain.n_units, np.int8)
    signs[brain.offsets[-2] + 3] = 1
    return model, networks.Network("token 42", brain, signs)


def test_a_planted_unit_makes_its_token_likely_when_steered(planted):
    model, network = planted
    effect = geometry.to_img(network.brain, network.units.astype(np.float32))
    before = answers(model).log_softmax(-1)[..., 42]
    with steer(model, effect, 20, network=network):
        pushed = answers(model)
    with steer(model, effect, -20, network=network):
        pulled = answers(model).log_softmax(-1)[..., 42]
    assert (pushed.argmax(-1) == 42).all()
    assert (pulled < before).all()


def test_nested_interventions_apply_in_the_order_of_entering(planted):
    model, network = planted
    effect = geometry.to_img(network.brain, network.units.astype(np.float32))
    down = model.module.model.layers[-1].mlp.down_proj
    seen = []

    def value():
        handle = down.register_forward_pre_hook(lambda _m, args: seen.append(args[0][0, -1, 3]))
        answers(model)
        handle.remove()
        return float(seen[-1])

    with steer(model, effect, 5, network=network), scale(model, network, 2):
        assert value() == pytest.approx(10)
    with scale(model, network, 2), steer(model, effect, 5, network=network):
        assert value() == pytest.approx(5)
    with steer(model, effect, 5, network=network), lesion(model, network):
        assert value() == 0


def test_everything_is_back_afterwards_also_after_an_error(tiny_model):
    network = some_units(brain_of(tiny_model, "default"))
    before = {name: value.clone() for name, value in tiny_model.module.state_dict().items()}
    logits = answers(tiny_model)

    def interrupted():
        with scale(tiny_model, network, 7), lesion(tiny_model, network):
            answers(tiny_model)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert torch.equal(answers(tiny_model), logits)
    for name, value in tiny_model.module.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny_model.module.modules())


def test_weights_of_a_map_scale_by_degrees(tiny_model):
    brain = brain_of(tiny_model, "mlp")
    values = np.zeros(brain.n_units)
    values[:3] = [-4.2, 2.1, 0.42]
    network = networks.from_mask(brain, geometry.to_img(brain, values))
    assert network.weights is not None
    np.testing.assert_allclose(network.strengths[:4], [1, 0.5, 0.1, 0])
    seen = {}

    def keep(name):
        return lambda _m, _a, out: seen.__setitem__(name, out.detach().clone())

    mlp = tiny_model.module.model.layers[0].mlp
    handle = mlp.register_forward_hook(keep("before"))
    with scale(tiny_model, network, 3):
        handle_after = mlp.register_forward_hook(keep("after"))
        answers(tiny_model)
    handle.remove()
    handle_after.remove()
    ratio = (seen["after"] / seen["before"])[0, 0]
    np.testing.assert_allclose(ratio[:4], [3, 2, 1.2, 1], rtol=1e-5)


def test_another_models_network_is_refused(tiny_model, tiny_models):
    network = some_units(brain_of(tiny_models("opt"), "attn"))
    with (
        pytest.raises(
            InterventionError, match=r"space mb.* does not have \(no module 'model.decoder"
        ),
        lesion(tiny_model, network),
    ):
        pass
    wide = some_units(geometry.layout([geometry.Site("mlp", 1, "model.layers.0.mlp", 25)]))
    with (
        pytest.raises(InterventionError, match="has 24 units in this model and 25"),
        lesion(tiny_model, wide),
    ):
        answers(tiny_model)
    assert not any(m._forward_hooks for m in tiny_model.module.modules())


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda m, n: lesion(m, n, "median"), "use zero, mean or resample"),
        (lambda m, n: lesion(m, n, "mean"), "needs control trials"),
        (lambda m, n: scale(m, n, float("nan")), "factor is nan"),
        (lambda m, n: steer(m, n.mask_img(), float("inf"), network=n), "strength is inf"),
        (lambda m, n: steer(m, n.mask_img()), "needs brain= or network="),
    ],
)
def test_bad_requests_are_one_line(tiny_model, act, message):
    network = some_units(brain_of(tiny_model, "attn"))
    with pytest.raises(InterventionError, match=message) as caught, act(tiny_model, network):
        pass
    assert "\n" not in str(caught.value)


def test_controls_of_another_space_are_refused(tiny_model):
    network, other = (some_units(brain_of(tiny_model, sites)) for sites in ("attn", "mlp"))
    controls = Controls.of(other.brain, np.zeros((2, other.brain.n_units), np.float32))
    with (
        pytest.raises(InterventionError, match="control trials are in space"),
        lesion(tiny_model, network, "mean", controls=controls),
    ):
        pass


class _Run:
    """Two control trials and one of a task."""

    def __init__(self, brain, values):
        import pandas as pd

        self.brain = brain
        self.events = pd.DataFrame({"trial_type": ["control", "pathology", "control"]})
        self._values = values

    def values(self):
        return self._values


def test_control_trials_leave_the_task_out(tiny_model):
    brain = brain_of(tiny_model, "attn")
    values = np.random.default_rng(0).normal(size=(3, brain.n_units)).astype(np.float32)
    controls = interventions.control_trials([_Run(brain, values), _Run(brain, 2 * values)])
    expected = np.stack([values[0], values[2], 2 * values[0], 2 * values[2]])
    np.testing.assert_array_equal(controls.trials, expected)
    np.testing.assert_allclose(controls.mean, expected.mean(0), rtol=1e-5)
    np.testing.assert_allclose(controls.sd, expected.std(0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(controls.activity, np.abs(expected).mean(0), rtol=1e-5)
    with pytest.raises(InterventionError, match="no runs"):
        interventions.control_trials([])


def test_control_trials_that_were_not_kept_serve_means_alone(tiny_model):
    network = some_units(brain_of(tiny_model, "mlp"))
    trials = np.random.default_rng(2).normal(size=(5, network.brain.n_units)).astype(np.float32)
    kept = Controls.of(network.brain, trials)
    moments = Controls(network.brain, kept.mean, kept.sd)
    with lesion(tiny_model, network, "mean", controls=kept):
        expected = answers(tiny_model)
    with lesion(tiny_model, network, "mean", controls=moments):
        torch.testing.assert_close(answers(tiny_model), expected, rtol=0, atol=0)
    scores = [networks.read_out(network, c).scores(trials) for c in (kept, moments)]
    np.testing.assert_array_equal(*scores)
    message = "'resample' needs control trials"
    with pytest.raises(InterventionError, match=message):
        lesion(tiny_model, network, "resample", controls=moments).__enter__()
    with pytest.raises(networks.ReadoutError, match="were not kept"):
        assert moments.activity is None


def test_resampling_draws_control_trials_by_its_seed(tiny_model):
    network = some_units(brain_of(tiny_model, "mlp"))
    values = np.random.default_rng(1).normal(size=(4, network.brain.n_units)).astype(np.float32)
    controls = Controls.of(network.brain, values)
    site = network.brain.sites[0]
    inside = network.brain.slice_of(site)
    units = np.flatnonzero(network.units[inside])
    allowed = values[:, inside][:, units]

    def written(seed):
        seen = []
        layer = tiny_model.module.get_submodule(site.module)
        with lesion(tiny_model, network, "resample", controls=controls, seed=seed):
            handle = layer.register_forward_hook(lambda _m, _a, out: seen.append(out[..., units]))
            answers(tiny_model)
            handle.remove()
        return seen[0].reshape(-1, len(units)).numpy()

    first, again, other = written(1), written(1), written(2)
    drawn = [next(i for i in range(4) if np.array_equal(row, allowed[i])) for row in first]
    assert set(drawn) == {0, 1, 2, 3}
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
