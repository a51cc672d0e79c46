"""A figure shows the numbers of the records, and nothing global is touched to draw it."""

import matplotlib as mpl
import numpy as np
import sweeps

from lacuna.reports import figures


def lines(panel):
    return {line.get_label(): line.get_xydata() for line in panel.get_lines()}


def test_the_best_of_n_panels_hold_the_measured_curve_of_their_sigma():
    figure = figures.best_of_n(sweeps.sweep_records(measured=(1.0, 9.0)))
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
