"""Pictures: what is drawn, its labels and limits, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import jaxsgd
from jaxsgd import plots


def test_the_learning_curve_draws_both_losses_and_refuses_an_empty_history():
    history = {"epoch": [1, 2, 3], "loss": [3.0, 2.0, 1.0], "validation_loss": [3.1, 2.5, 2.0]}
    ax = plots.learning_curve(history, label="softmax loss")
    assert [line.get_ydata().tolist() for line in ax.lines] == [
        history["loss"],
        history["validation_loss"],
    ]
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()) == ("epoch", "softmax loss", "log")
    negative = plots.learning_curve({"epoch": [1, 2], "loss": [0.5, -1.0]})
    assert negative.get_yscale() == "linear"
    with pytest.raises(ValueError, match="no epoch"):
        plots.learning_curve({})


def test_a_run_that_diverged_can_be_seen():
    ax = plots.learning_curve({"epoch": [1, 2, 3], "loss": [1.0, 1e5, np.inf]})
    assert (ax.get_yscale(), ax.get_ylim()[1]) == ("log", 10)
    with pytest.raises(TypeError, match="expected a dict, such as result.history"):
        plots.learning_curve([1, 2])
    with pytest.raises(ValueError, match="no finite value"):
        plots.learning_curves({"a": [np.nan]})


def test_learning_curves_draw_lanes_as_a_band_and_cut_what_diverges():
    lanes = np.exp(-np.arange(5.0)) * np.array([[1.0], [2.0], [3.0]])
    diverging = np.array([2.0, 40.0, 4e9, np.inf, np.nan])
    ax = plots.learning_curves({"fine": lanes, "too large": diverging}, x=np.arange(5) * 10)
    fine, large = (line.get_ydata() for line in ax.lines)
    np.testing.assert_allclose(fine, lanes[1])
    assert np.isnan(large[3:]).all()
    assert len(ax.collections) == 1
    assert ax.get_yscale() == "log"
    assert ax.get_ylim()[1] == 20
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["fine", "too large"]
    negative = plots.learning_curves({"a": [1.0, -1.0]}, xlabel="epoch", label="energy")
    assert (negative.get_yscale(), negative.get_xlabel()) == ("linear", "epoch")
    with pytest.raises(ValueError, match="no run"):
        plots.learning_curves({})


def test_a_fitted_line_tells_its_equation():
    ax = plots.fitted_line({"weight": 2.0, "bias": -1.0}, (np.arange(3.0)[:, None], np.ones(3)))
    assert ax.lines[1].get_label() == "y = 2 x - 1"
    assert ax.lines[0].get_label() == "3 rows"


def test_a_surface_lies_flat_or_as_a_relief_with_paths_on_it():
    bowl = lambda theta: theta @ theta  # noqa: E731
    paths = {"run": np.array([[1.0, 1.0], [0.5, 0.0]])}
    ax = plots.surface(bowl, (-1, 1), (-2, 2), paths=paths)
    assert ax.get_aspect() == 1
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), paths["run"])
    (arrows,) = [c for c in ax.collections if type(c).__name__ == "Quiver"]
    downhill = arrows.U * arrows.XY[:, 0] + arrows.V * arrows.XY[:, 1]
    assert (downhill <= 0).all()
    np.testing.assert_allclose(np.hypot(arrows.U, arrows.V)[downhill < 0], 1, rtol=1e-5)
    relief = Figure().add_subplot(projection="3d")
    plots.surface(bowl, (-1, 1), (-2, 2), relief, paths=paths)
    assert relief.get_zlabel() == "loss"
    np.testing.assert_allclose(relief.lines[0].get_data_3d()[2], [2.0, 0.25])


def test_basins_count_each_minimum_and_what_came_near_none():
    ends = jnp.zeros((2, 2, 2)).at[0, 0].set(5.0).at[1, 1].set(jnp.nan)
    ax = plots.basins(ends, {"a": (0.0, 0.0), "b": (1.0, 1.0)}, (-1, 1), (-1, 1))
    told = [text.get_text() for text in ax.get_legend().get_texts()]
    assert told == ["a: 50 %", "b: 0 %", "none: 50 %"]
    image = ax.images[0].get_array()
    assert (image[0, 0] == image[1, 1]).all()
    assert (image[0, 1] == image[1, 0]).all()
    assert (image[0, 0] != image[0, 1]).any()


KEYS = jax.random.split(jax.random.key(0), 4)


def scored(scores, **over):
    """A sweep of given scores."""
    over = tuple({name: values} for name, values in over.items())
    return jaxsgd.Sweep(jnp.asarray(scores), over)


def test_a_sweep_over_one_axis_is_a_curve_with_its_band_and_crosses():
    rates = jnp.geomspace(1e-3, 1, 8)[::-1]  # drawn in ascending order
    factor = np.array([1.0, 2.0, 3.0, 6.0])
    scores = np.linspace(0.8, 0.1, 8)[:, None] * factor
    scores[0, 2], scores[1, 0], scores[1, 1] = np.inf, np.nan, np.inf
    ax = plots.sweep(scored(scores, learning_rate=rates, key=KEYS), mean_over="key", label="loss")
    line, crosses = ax.lines[:2]
    np.testing.assert_allclose(line.get_xdata(), rates[::-1])
    np.testing.assert_allclose(line.get_ydata()[:6], 3 * scores[:1:-1, 0], rtol=1e-6)
    assert np.isnan(line.get_ydata()[6:]).all()
    np.testing.assert_allclose(crosses.get_xdata(), rates[1::-1])
    assert (crosses.get_ydata() == 1).all()  # of the height of the axes
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("learning rate", "loss\nmean of 4 runs")
    told = [text.get_text() for text in ax.get_legend().get_texts()]
    assert told == ["least to largest run", "diverged: 3 of 32 runs"]
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose([band.min(), band.max()], [0.1, 3.6], rtol=1e-6)


def test_a_sweep_over_two_axes_is_a_heat_map_or_curves():
    scores = np.array([[4.0, 3.0, np.inf], [40.0, 0.3, 2.0]])
    result = scored(scores, momentum=jnp.array([0.0, 0.9]), rate=jnp.array([0.1, 0.5, 0.3]))
    ax = plots.sweep(result)
    (cells,) = ax.images
    drawn = cells.get_array()  # the first axis to the right, ascending
    np.testing.assert_allclose(drawn.filled(-1), [[4, 40], [-1, 2], [3, 0.3]], rtol=1e-6)
    assert type(cells.norm).__name__ == "LogNorm"
    best, crosses = ax.lines
    assert [*best.get_xydata()[0]] == [1, 2]
    assert crosses.get_xydata().tolist() == [[0, 1]]
    told = [text.get_text() for text in ax.get_legend().get_texts()]
    assert told == ["best: 0.3", "diverged: 1 of 6 runs"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["0.1", "0.3", "0.5"]
    assert ax.figure.axes[1].get_ylabel() == "loss"
    curves = plots.sweep(result, kind="curves")
    assert [line.get_label() for line in curves.lines[:3]] == [
        "rate = 0.1",
        "rate = 0.3",
        "rate = 0.5",
    ]
    assert curves.get_xscale() == "linear"
    assert curves.lines[3].get_xdata().tolist() == [0]


def test_a_sweep_by_place_zipped_negative_constant_or_diverged_all_over():
    by_key = plots.sweep(scored(-np.arange(4.0), key=KEYS))
    assert (by_key.get_xlabel(), by_key.get_yscale()) == ("key, by place", "linear")
    assert by_key.get_legend() is None
    zipped = jaxsgd.Sweep(jnp.arange(4.0), ({"key": KEYS, "rate": jnp.arange(4.0)},))
    assert plots.sweep(zipped).get_xlabel() == "rate (with key)"
    rates, strengths = jnp.array([0.1, 0.2, 0.3]), jnp.array([1.0, 2.0, 4.0])
    for value in (0.5, np.nan):
        for kind in ("heat", "curves"):
            result = scored(np.full((3, 3), value), rate=rates, strength=strengths)
            plots.sweep(result, kind=kind).figure.canvas.draw()
    outlier = plots.sweep(scored([1.0, 0.5, 2.0, 1.5, 1e30], rate=jnp.arange(5.0)))
    assert 0.3 < outlier.get_ylim()[0] < 0.5 < outlier.get_ylim()[1] < 100


def test_a_sweep_that_cannot_be_drawn_is_refused():
    result = scored(np.ones((2, 2, 4)), a=jnp.ones(2), b=jnp.ones(2), key=KEYS)
    for options, told in [
        ({}, "other than mean_over=None are a, b, key; expected one or two"),
        ({"mean_over": "keys"}, "mean_over is 'keys', expected names"),
        ({"mean_over": "key", "kind": "bars"}, "kind is 'bars', expected 'heat', 'curves' or None"),
    ]:
        with pytest.raises(ValueError, match=told):
            plots.sweep(result, **options)
    one = scored(np.ones(2), a=jnp.ones(2))
    with pytest.raises(ValueError, match="are a; expected two for a heat map"):
        plots.sweep(one, kind="heat")
    with pytest.raises(ValueError, match="are none; expected one or two"):
        plots.sweep(one, mean_over="a")
