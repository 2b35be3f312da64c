"""Tests of plotting: what is drawn is what is in the data, and nothing stays changed."""

import base64
import html
import io
import re

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg

from llm2nifti import geometry, plotting
from llm2nifti.geometry import Site

N_UNITS = 36
LABELS = ["medicalimaging", "pathology", "archeology"]
MATRIX = np.array([[0.71, -0.2, 0.08], [-0.2, 0.64, 0.31], [0.08, 0.31, 1.0]])
EVENTS = pd.DataFrame({"onset": [0.0, 4, 8, 12, 16, 20], "duration": 4.0})
EVENTS["trial_type"] = ["control", "control", "archeology", "archeology", "control", "control"]
EVENTS["block"] = [1, 1, 2, 2, 3, 3]
PROFILE = pd.DataFrame({"layer": [2, 1, 3, 1], "site": ["mlp", "mlp", "mlp", "attn"]})
PROFILE["share"] = [0.2, 0.1, 0.3, 0.05]
# Every plot function as a call of brain, anatomy and Axes.
PLOTS = {
    "map": lambda brain, bg, ax: plotting.plot_map(
        planted(brain, "h.2.attn:9", 6.0)[0], bg_img=bg, threshold=3, ax=ax
    ),
    "floor_plan": lambda brain, _, ax: plotting.plot_floor_plan(brain, ax=ax),
    "atlas": lambda brain, bg, ax: plotting.plot_atlas(brain, bg_img=bg, ax=ax),
    "matrix": lambda _, __, ax: plotting.plot_matrix(MATRIX, LABELS, ax=ax),
    "layer_profile": lambda _, __, ax: plotting.plot_layer_profile(PROFILE, ax=ax),
    "design": lambda _, __, ax: plotting.plot_design(EVENTS, ax=ax),
    "shares": lambda _, __, ax: plotting.plot_shares({"pathology": 0.2}, [0.04, 0.06], ax=ax),
    "graph": lambda brain, _, ax: plotting.plot_graph(
        MATRIX, [(-2, 0, 0), (0, 0, 2), (2, 0, 4)], groups=[0, 0, 1], ax=ax
    ),
    "depth": lambda _, __, ax: plotting.plot_depth(
        PROFILE.rename(columns={"share": "value"}), ylabel="AUC", limit=0.2, ax=ax
    ),
    "bars": lambda _, __, ax: plotting.plot_bars({"a": 0.4}, {"a": (0.1, 0.5)}, ylabel="r", ax=ax),
}


@pytest.fixture(scope="module")
def brain():
    sides = [("attn", "left"), ("resid", "middle"), ("mlp", "right")]
    kinds = [(layer, *kind) for layer in (1, 2, 3) for kind in sides]
    blocks = [Site(name, n, f"h.{n}.{name}", N_UNITS, side=side) for n, name, side in kinds]
    ends = Site("embed", 0, "wte", N_UNITS), Site("norm", 4, "ln_f", N_UNITS)
    return geometry.layout([ends[0], *blocks, ends[1]])


@pytest.fixture(scope="module")
def anatomy(brain):
    return geometry.anatomy_img(brain, np.random.default_rng(0).uniform(0.5, 2, brain.n_units))


def planted(brain, name, value):
    """Map that is zero but for one unit, and that unit's address."""
    address = geometry.find_unit(brain, name)
    values = np.zeros(brain.n_units, np.float32)
    values[(brain.voxels == address.voxel).all(axis=1)] = value
    return geometry.to_img(brain, values), address


def pixels(ax):
    """Rendered figure as (height, width, 3) floats, the first row at the bottom."""
    canvas = FigureCanvasAgg(ax.figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[::-1, :, :3] / 255


def slices(ax):
    """Slices of a brain picture by the note below them."""
    return {a.get_title(): a for a in ax.figure.axes if " mm" in a.get_title()}


def colored_mm(ax, inner, sign):
    """x and z in mm of the red (sign 1) or blue (-1) pixels of a slice."""
    picture = pixels(ax)
    rows, columns = np.nonzero(sign * (picture[..., 0] - picture[..., 2]) > 0.25)
    points = inner.transData.inverted().transform(np.column_stack([columns, rows]) + 0.5)
    low, high = np.transpose([inner.get_xlim(), inner.get_ylim()])
    return points[((points >= low) & (points <= high)).all(axis=1)]


@pytest.mark.parametrize("name", PLOTS)
def test_functions_return_axes_and_leave_nothing_changed(brain, anatomy, name):
    before = dict(mpl.rcParams), plt.get_fignums(), mpl.get_backend()
    assert isinstance(PLOTS[name](brain, anatomy, None), plt.Axes)
    given = plt.Figure().add_subplot()
    assert PLOTS[name](brain, anatomy, given) is given
    pixels(given)
    assert (dict(mpl.rcParams), plt.get_fignums(), mpl.get_backend()) == before


@pytest.mark.parametrize("name", ["h.2.attn:9", "h.1.resid:0", "h.3.mlp:35", "wte:20", "ln_f:3"])
@pytest.mark.parametrize("sign", [1, -1])
def test_map_colors_the_planted_unit_and_nothing_else(brain, anatomy, name, sign):
    img, address = planted(brain, name, 8.0 * sign)
    ax = plotting.plot_map(img, bg_img=anatomy, threshold=3, cut_coords=[address.mm[1]])
    (inner,) = slices(ax).values()
    points = colored_mm(ax, inner, sign)
    # Nilearn stretches a slice from its first to its last voxel centre: off by half a voxel.
    np.testing.assert_allclose(points.mean(axis=0), np.take(address.mm, [0, 2]), atol=1.3)
    assert np.ptp(points, axis=0).max() <= brain.voxel_size
    assert not len(colored_mm(ax, inner, -sign))


def test_map_shows_no_color_in_other_slices_or_below_the_threshold(brain, anatomy):
    img, address = planted(brain, "h.2.attn:9", 8.0)
    other = address.mm[1] + brain.voxel_size
    ax = plotting.plot_map(img, bg_img=anatomy, threshold=3, cut_coords=[other])
    assert not len(colored_mm(ax, *slices(ax).values(), 1))
    ax = plotting.plot_map(img, bg_img=anatomy, threshold=9, cut_coords=[address.mm[1]])
    assert not len(colored_mm(ax, *slices(ax).values(), 1))


def test_map_picks_the_strongest_slices_in_order(brain, anatomy):
    values = np.zeros(brain.n_units, np.float32)
    rows = brain.voxels[:, 1]
    for row, strength in {1: 2.0, 3: 9.0, 4: 8.0, 5: 7.0, 6: 6.0}.items():
        values[np.flatnonzero(rows == row)[0]] = strength
    ax = plotting.plot_map(geometry.to_img(brain, values), bg_img=anatomy)
    y = [brain.affine[1, 3] + brain.voxel_size * row for row in (3, 4, 5, 6)]
    assert list(slices(ax)) == [f"y = {mm:g} mm".replace("-", "−") for mm in y]


def test_map_names_its_parts_from_left_to_right_and_its_statistic(brain, anatomy):
    img, _ = planted(brain, "h.2.attn:9", -5.0)
    ax = plotting.plot_map(img, bg_img=anatomy, title="pathology - control", label="z")
    inner = next(iter(slices(ax).values()))
    spots = {text.get_text(): text.get_position()[0] for text in inner.texts}
    assert list(spots) == ["attention", "stream", "MLP"]
    for name, site in zip(spots, ("attn", "resid", "mlp"), strict=True):
        x = [v[0] for s in brain.sites if s.name == site for v in brain.voxels[brain.slice_of(s)]]
        assert spots[name] == pytest.approx(brain.affine[0, 3] + brain.voxel_size * np.mean(x))
    bar = ax.figure.axes[-1]
    assert bar.get_title() == "z"
    assert bar.get_ylim() == (-5, 5)
    assert ax.get_title(loc="left") == "pathology - control"


def test_map_stays_in_the_model_brain_and_shows_its_anatomy(brain, anatomy):
    img, _ = planted(brain, "h.2.attn:9", 5.0)
    ax = plotting.plot_map(img, bg_img=anatomy, threshold=3)
    inner = next(iter(slices(ax).values()))
    assert np.abs(inner.get_xlim()).max() <= brain.voxel_size * brain.shape[0] / 2
    shown = inner.images[0].get_array().compressed()
    values = anatomy.get_fdata()
    assert set(np.round(shown)) <= set(np.round(values[values > 0]))


def test_atlas_marks_layers_at_their_heights_and_gives_each_site_its_hue(brain, anatomy):
    ax = plotting.plot_atlas(brain, bg_img=anatomy)
    coronal = next(inner for note, inner in slices(ax).items() if note.startswith("y"))
    heights = {text.get_text(): text.get_position()[1] for text in coronal.texts}
    for module, name in {"wte": "embedding", "h.2.mlp": "2", "ln_f": "final norm"}.items():
        assert heights[name] == geometry.find_unit(brain, f"{module}:0").mm[2]
    picture, seen = pixels(ax), {}
    for name in ("attn", "resid", "mlp"):
        x, _, z = geometry.find_unit(brain, f"h.2.{name}:{N_UNITS // 2 + 3}").mm
        column, row = coronal.transData.transform((x, z)).astype(int)
        seen[name] = int(picture[row, column].argmax())
    assert seen == {"attn": 2, "resid": 1, "mlp": 0}  # blue, green, red


def test_floor_plan_tiles_hold_exactly_their_voxels(brain):
    ax = plotting.plot_floor_plan(brain)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x (mm)", "y (mm)")
    tiles = zip(ax.texts, ax.patches, strict=True)
    areas = {text.get_text(): patch.get_bbox() for text, patch in tiles}
    kinds = ["attn\nleft", "mlp\nright", "resid\nmiddle"]
    assert sorted(areas) == [f"{kind}\n{N_UNITS} units" for kind in kinds]
    for text, area in areas.items():
        site = next(s for s in brain.sites if s.name == text.split("\n")[0])
        mm = brain.affine[:2, 3] + brain.voxel_size * brain.voxels[brain.slice_of(site), :2]
        np.testing.assert_allclose(area.p0, mm.min(axis=0) - brain.voxel_size / 2)
        np.testing.assert_allclose(area.p1, mm.max(axis=0) + brain.voxel_size / 2)


CELLS = [
    (MATRIX[:2, :2], ["0.71", "−0.20", "−0.20", "0.64"]),
    ([[12, 0], [3, 9]], ["12", "0", "3", "9"]),
    ([[1.0, np.nan], [-0.001, 1.0]], ["1.00", "–", "0.00", "1.00"]),
]


@pytest.mark.parametrize(("matrix", "texts"), CELLS, ids=["shares", "counts", "missing"])
def test_matrix_cells_say_the_data(matrix, texts):
    ax = plotting.plot_matrix(matrix, LABELS[:2], title="Overlap", colorbar_label="Dice")
    assert [text.get_text() for text in ax.texts] == texts
    assert [text.get_position() for text in ax.texts] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert [t.get_text() for t in ax.get_yticklabels()] == LABELS[:2]
    assert [t.get_text() for t in ax.get_xticklabels()] == LABELS[:2]
    assert ax.figure.axes[-1].get_ylabel() == "Dice"


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_matrix_numbers_are_readable_on_every_color(low):
    n = 12
    ax = plotting.plot_matrix(np.linspace(low, 1, n * n).reshape(n, n), [str(i) for i in range(n)])
    image = ax.images[0]
    for text, value in zip(ax.texts, np.linspace(low, 1, n * n), strict=True):
        channels = np.array([image.to_rgba(value)[:3], mpl.colors.to_rgb(text.get_color())])
        bright, dark = np.sort((channels**2.2) @ (0.2126, 0.7152, 0.0722))[::-1]
        assert (bright + 0.05) / (dark + 0.05) > 3.5  # contrast as WCAG defines it
    assert image.get_clim() == (low, 1)


def test_matrix_refuses_labels_that_do_not_fit():
    with pytest.raises(ValueError, match=r"2 labels do not fit a matrix of shape \(3, 3\)"):
        plotting.plot_matrix(MATRIX, LABELS[:2])


def test_layer_profile_draws_per_cent_in_layer_order():
    ax = plotting.plot_layer_profile(PROFILE)
    lines = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert lines == {"mlp": [[1, 10], [2, 20], [3, 30]], "attn": [[1, 5]]}
    assert ax.get_xlabel().startswith("Layer")
    assert "(%)" in ax.get_ylabel()
    assert ax.lines[0].get_color() != ax.lines[1].get_color()


def test_design_draws_every_trial_in_the_row_of_its_condition():
    ax = plotting.plot_design(EVENTS)
    rows = [tick.get_text() for tick in ax.get_yticklabels()]
    assert rows == ["control", "archeology"]
    spans = {
        (box.x0, box.width, rows[round((box.y0 + box.y1) / 2)])
        for trials in ax.collections
        for box in (path.get_extents() for path in trials.get_paths())
    }
    trials = set(zip(EVENTS["onset"], EVENTS["duration"], EVENTS["trial_type"], strict=True))
    blocks = {(0, 8, "control"), (8, 8, "archeology"), (16, 8, "control")}
    assert spans == trials | blocks
    assert ax.get_xlim() == (0, 24)
    assert ax.get_xlabel() == "Time (s)"


def test_shares_put_tasks_beside_the_null_and_the_nominal_rate():
    shares, null = {"pathology": 0.21, "archeology": 0.13}, [0.03, 0.05, 0.06, 0.04]
    ax = plotting.plot_shares(shares, null, title="Null")
    texts = [tick.get_text() for tick in ax.get_yticklabels()]
    names = dict(zip(ax.get_yticks(), texts, strict=True))
    bars = {names[round(p.get_y() + 0.3)]: p.get_width() for p in ax.patches if p.get_y() > -1}
    assert bars == pytest.approx({task: 100 * share for task, share in shares.items()})
    points, nominal = ax.lines
    np.testing.assert_allclose(points.get_xdata(), [3, 5, 6, 4])
    assert names[-1] == "pseudo-tasks\n(n = 4)"
    assert np.abs(points.get_ydata() + 1).max() < 0.3
    assert list(nominal.get_xdata()) == [5, 5]
    assert [text.get_text() for text in ax.texts] == ["13.0", "21.0"]


def test_bars_show_intervals_even_without_their_value_and_chance():
    values, intervals = {"a": 0.75, "b": 0.5}, {"b": (0.4, 0.6), "a": (0.5, 0.7)}
    ax = plotting.plot_bars(values, intervals, ylabel="Correlation (r)", chance=0.25)
    assert [bar.get_height() for bar in ax.patches] == [0.75, 0.5]
    lines = [line.get_xydata().tolist() for line in ax.lines]
    assert lines[:2] == [[[1, 0.4], [1, 0.6]], [[0, 0.5], [0, 0.7]]]
    assert lines[2] == [[0, 0.25], [1, 0.25]]
    assert ax.get_ylabel() == "Correlation (r)"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["chance"]


@pytest.mark.parametrize("name", ["map", "matrix", "shares"])
def test_save_writes_the_same_bytes_twice_and_closes(brain, anatomy, tmp_path, name):
    first = plotting.save(PLOTS[name](brain, anatomy, None).figure, tmp_path / "first.run-1")
    assert [path.name for path in first] == ["first.run-1.png", "first.run-1.svg"]
    figure = plt.figure()
    PLOTS[name](brain, anatomy, figure.add_subplot())
    second = plotting.save(figure, tmp_path / "open")
    assert not plt.fignum_exists(figure.number)
    third = plotting.save(PLOTS[name](brain, anatomy, None).figure, str(tmp_path / "third"))
    for a, b, c in zip(first, second, third, strict=True):
        assert a.read_bytes() == c.read_bytes() != b.read_bytes()
    assert b"matplotlib version" not in first[0].read_bytes().lower()
    assert b"<dc:date>" not in first[1].read_bytes()


def test_view_holds_the_map_loads_nothing_and_repeats(brain, anatomy):
    img, _ = planted(brain, "h.2.attn:9", 8.0)
    frame = plotting.view(img, bg_img=anatomy, threshold=3, title="a < b")
    assert frame == plotting.view(img, bg_img=anatomy, threshold=3, title="a < b")
    page = html.unescape(re.search(r'srcdoc="([^"]*)"', frame)[1])
    assert "<p>a &lt; b</p>" in page
    sources = re.findall(r'<img[^>]*src="([^"]{22})', page)
    assert sources == ["data:image/png;base64,"] * 3  # anatomy, map and colour bar
    assert not re.search(r"https?://|<link\s|<script\s[^>]*src|@import|url\(|fetch\(", page)
    overlay = re.search(r'id="overlayImg-map"[^>]*base64,([^"]*)"', page)[1]
    picture = plt.imread(io.BytesIO(base64.b64decode(overlay)))
    assert (picture[..., 0] - picture[..., 2] > 0.25).sum() == 1


def test_a_map_of_which_nothing_passes_is_drawn_without_complaint(brain, anatomy, recwarn):
    img = geometry.to_img(brain, np.zeros(brain.n_units, np.float32))
    ax = plotting.plot_map(img, bg_img=anatomy, threshold=3)
    assert len(slices(ax)) == 4
    assert "iframe" in plotting.view(img, bg_img=anatomy, threshold=3)
    assert not recwarn.list


def test_more_curves_than_colours_are_all_drawn():
    point = [{"value": 0.6, "low": 0.5, "high": 0.7}] * 2
    names = [f"method {i}" for i in range(9)]
    ax = plotting.plot_auc(dict.fromkeys(names, point))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == names
    ax = plotting.plot_roc([0, 1], {name: [0, 1] for name in names})
    assert len(ax.lines) == 1 + len(names)  # and the diagonal
    doses = {name: {0.1: (0, -1, 1), 0.2: (0, -1, 1)} for name in names}
    assert len(plotting.plot_doses(doses).get_legend().get_texts()) == len(names)


def test_a_graph_has_the_strongest_links_and_a_colour_a_community():
    ax = plotting.plot_graph(
        MATRIX, [(-2, 0, 0), (0, 0, 2), (2, 0, 4)], groups=[0, 0, 1], share=0.4
    )
    (link,) = ax.collections[0].get_segments()  # one of three pairs: .31, between the last two
    np.testing.assert_allclose(link[[0, -1]], [(0, 2), (2, 4)])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "community 1 (2)",
        "community 2 (1)",
    ]


def test_a_depth_profile_has_a_line_a_site_and_dots_for_the_baseline():
    table = PROFILE.rename(columns={"share": "value"}).assign(baseline=0.1)
    ax = plotting.plot_depth(table, ylabel="AUC", limit=0.2, chance=0.5)
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_array_equal(lines["mlp"].get_xydata(), [(1, 0.1), (2, 0.2), (3, 0.3)])
    assert sum(line.get_linestyle() == ":" for line in ax.lines) == 2
    names = [f"p{i}" for i in range(6)]
    many = pd.DataFrame({"layer": 1, "site": names, "value": 0.5})
    drawn = [line.get_color() for line in plotting.plot_depth(many, ylabel="r").lines]
    assert len(set(drawn)) == 6
