"""Prepared starting points: a model, the point in its parameters, and the task that is to be searched for there."""

from lacuna.setups.digit_models import DEFAULT_CACHE as DEFAULT_CACHE
from lacuna.setups.digit_models import Setup as Setup
from lacuna.setups.digit_models import SetupConfig as SetupConfig
from lacuna.setups.digit_models import State as State
from lacuna.setups.digit_models import kept as kept
from lacuna.setups.digit_models import prepare as prepare
from lacuna.setups.digit_models import untrained as untrained
