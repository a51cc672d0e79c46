"""Models as pure functions over plain trees of arrays."""

from lacuna.models.model import Model as Model
from lacuna.models.model import Output as Output
from lacuna.models.synthetic import SyntheticSpec as SyntheticSpec
from lacuna.models.synthetic import synthetic as synthetic
