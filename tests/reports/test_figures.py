"""A figure shows the numbers of the records, and nothing global is touched to draw it."""

from itertools import combinations

import matplotlib as mpl
import numpy as np
import pytest
import sweeps

from lacuna.reports import figures


def lines(panel):
    return {line.get_label(): line.get_xydata() for line in panel.get_lines()}


def test_the_best_of_n_panels_hold_the_measured_curve_of_their_sigma():
    figure = figures.sweep_figures(sweeps.sweep_records(measured=(1.0, 9.0)))["best_of_n"]
    panels = figure.axes
    assert [panel.get_title(loc="left").split(",")[0] for panel in panels] == ["σ = 0.001", "σ = 0.01"]
    for panel, gain in zip(panels, (1.0, 9.0), strict=True):
        np.testing.assert_allclose(lines(panel)["measured, mean over subsets"], [[1, gain / 8], [8, gain]])


def test_the_normalised_panel_divides_by_sigma_and_slope():
    records = sweeps.sweep_records(measured=(1.0, 9.0))
    plain, normalised = figures.gain_by_sigma(records).axes
    np.testing.assert_allclose(lines(plain)["measured"][:, 1], [1.0, 9.0])
    np.testing.assert_allclose(lines(normalised)["measured"][:, 1], [1.0 / 2e-3, 9.0 / 2e-2])


def test_a_measurement_is_always_inside_its_panel():
    records = sweeps.sweep_records(measured=(-5.0, 9.0))
    for figure in figures.sweep_figures(records).values():
        for panel in figure.axes:
            low, high = panel.get_ylim()
            for name, points in lines(panel).items():
                if name.startswith("measured"):
                    assert low <= points[:, 1].min() <= points[:, 1].max() <= high


def test_one_sided_draws_have_no_regime_figure():
    assert set(figures.sweep_figures(sweeps.sweep_records(sign="+"))) == {"gain_by_sigma", "best_of_n"}


def test_drawing_leaves_the_style_of_the_process_alone():
    before = dict(mpl.rcParams)
    figures.sweep_figures(sweeps.sweep_records())
    assert dict(mpl.rcParams) == before


def apart(boxes):
    """Whether no two of these rectangles of a figure touch."""
    return not any(a.overlaps(b) for a, b in combinations(boxes, 2))


@pytest.mark.parametrize(
    "sigmas", [(1e-3, 1e-2), (1e-3, 1.2e-3), (2e-4, 9e-4), (0.15, 1.0), (1.0, 1.5), (3e-5, 2e-4), (1e-6, 1e-1)]
)
def test_the_labels_of_the_sigmas_stay_apart(sigmas):
    for figure in figures.sweep_figures(sweeps.sweep_records(sigmas=sigmas, sigma_star=sigmas[0])).values():
        figure.draw_without_rendering()
        for panel in figure.axes:
            labels = [*panel.get_xticklabels(), *panel.get_xticklabels(minor=True)]
            low, high = panel.get_xlim()
            shown = [label for label in labels if label.get_text() and low <= label.get_position()[0] <= high]
            boxes = [label.get_window_extent() for label in shown]
            assert len(boxes) >= 2
            assert apart(boxes)


@pytest.mark.parametrize("next_sigma", [1e-4, 1e-3, 1.1e-3, 9e-3, 3e-2])
def test_the_next_sigma_is_marked_inside_the_panel_and_its_label_beside_that_of_sigma_star(next_sigma):
    records = sweeps.sweep_records(sigma_star=1e-3, next_sigma=(next_sigma, "peak"))
    figure = figures.gain_by_sigma(records)
    figure.draw_without_rendering()
    for panel in figure.axes:
        low, high = panel.get_xlim()
        assert low < next_sigma < high
        assert any(line.get_xdata()[0] == next_sigma for line in panel.get_lines())
        boxes = [text.get_window_extent() for text in panel.texts]
        assert len(boxes) == 2
        assert apart(boxes)
        frame = panel.get_window_extent()
        assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)
