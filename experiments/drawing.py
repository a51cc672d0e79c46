"""One look for the experiments' figures, the look of the sweep's."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lacuna.reports.figures import ASYMPTOTE as CONTROL
from lacuna.reports.figures import LIMIT as LIMIT
from lacuna.reports.figures import MARKERS as MARKERS
from lacuna.reports.figures import MEASURED as MEASURED
from lacuna.reports.figures import PREDICTED as PREDICTED
from lacuna.reports.figures import STYLE as STYLE
from lacuna.reports.records import Place, Record, select

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Tables = dict[str, tuple[list[str], list[list[str]]]]
"""Tables by heading: column names and rows."""

__all__ = ["CONTROL", "LIMIT", "MARKERS", "MEASURED", "PREDICTED", "STYLE", "Tables", "curve", "legend_above", "panels"]


def panels(
    num: int, *, rows: int = 1, width: float = 3.3, height: float = 3.6, sharey: bool = True, left: bool = False
) -> tuple["Figure", list["Axes"]]:
    """Rows of panels, row by row; `left` keeps room for long names on the first."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * num + (1.8 if left else 0.6), height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, num, squeeze=False, sharey=sharey).flat)


def curve(panel: "Axes", records: Sequence[Record], quantity: str, along: str, **options: Any) -> None:
    """The mean over seeds of a quantity along a place, with its range shaded; places other than looks select.

    A colour has a marker of its own, unless another is asked for.
    """
    looks = {"color", "ls", "lw", "marker", "ms", "label", "alpha"}
    where: dict[str, Place] = {name: value for name, value in options.items() if name not in looks}
    found = select(records, quantity, **where)
    if not found:
        return
    places = sorted({float(record.where[along]) for record in found})
    values = [[record.value for record in found if float(record.where[along]) == place] for place in places]
    low, mean, high = (np.asarray([function(v) for v in values]) for function in (np.min, np.mean, np.max))
    look = {name: value for name, value in options.items() if name in looks}
    colour = look.get("color")
    panel.plot(places, mean, **{"marker": MARKERS.get(str(colour)), "ms": 3.5, **look})
    panel.fill_between(places, low, high, color=colour, alpha=0.12, lw=0)
    for edge in (low, high):  # bands over bands are one grey in print
        panel.plot(places, edge, color=colour, lw=0.5, alpha=0.6)


def legend_above(figure: "Figure", panel: "Axes", *, columns: int = 4) -> None:
    """The panel's legend above the whole figure."""
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=columns)
