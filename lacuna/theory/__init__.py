"""What a Gaussian landscape predicts: order statistics, best-of-N gains and the linear regime.

Importable alone: it stands on jax and numpy, and where steps lie on a sphere on scipy, which comes with jax.
Moments and quantiles of maxima are float64 numbers made on the host; everything that takes losses, gradients or
sigmas is float32 jnp, compiled once, and may be traced and differentiated.
"""

from lacuna.theory.best_of_n import best_of_n_band as best_of_n_band
from lacuna.theory.best_of_n import best_of_n_gain as best_of_n_gain
from lacuna.theory.best_of_n import best_sigma as best_sigma
from lacuna.theory.gaussian import asymptotic_max as asymptotic_max
from lacuna.theory.gaussian import expected_max as expected_max
from lacuna.theory.gaussian import expected_max_abs as expected_max_abs
from lacuna.theory.gaussian import expected_max_square as expected_max_square
from lacuna.theory.gaussian import max_quantile as max_quantile
from lacuna.theory.linear_regime import SHARE as SHARE
from lacuna.theory.linear_regime import SLOPE_TOLERANCE as SLOPE_TOLERANCE
from lacuna.theory.linear_regime import Regime as Regime
from lacuna.theory.linear_regime import linear_regime as linear_regime
from lacuna.theory.linear_regime import predicted_share as predicted_share
from lacuna.theory.linear_regime import predicted_sigma_star as predicted_sigma_star
from lacuna.theory.linear_regime import rounding_floor as rounding_floor
from lacuna.theory.sphere import expected_max_coordinate as expected_max_coordinate
from lacuna.theory.sphere import expected_max_coordinate_square as expected_max_coordinate_square
from lacuna.theory.sphere import mass_quantile as mass_quantile
from lacuna.theory.sphere import max_coordinate_quantile as max_coordinate_quantile
from lacuna.theory.subspace import Unit as Unit
from lacuna.theory.subspace import subspace_gain as subspace_gain
