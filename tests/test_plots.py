"""Pictures: what is drawn, its labels and limits, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

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
