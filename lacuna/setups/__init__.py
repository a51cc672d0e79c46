"""Prepared starting points: a model, the point in its parameters, and the task that is to be searched for there."""

from lacuna.setups.digit_models import DEFAULT_CACHE as DEFAULT_CACHE
from lacuna.setups.digit_models import HELD_OUT_BATCHES as HELD_OUT_BATCHES
from lacuna.setups.digit_models import SEARCH_STEP as SEARCH_STEP
from lacuna.setups.digit_models import VERSION as VERSION
from lacuna.setups.digit_models import Setup as Setup
from lacuna.setups.digit_models import SetupConfig as SetupConfig
from lacuna.setups.digit_models import State as State
from lacuna.setups.digit_models import digit_model as digit_model
from lacuna.setups.digit_models import kept as kept
from lacuna.setups.digit_models import prepare as prepare
from lacuna.setups.digit_models import untrained as untrained
from lacuna.setups.language import LanguageSetup as LanguageSetup
from lacuna.setups.language import prepare_language as prepare_language
from lacuna.setups.language_models import LanguageModel as LanguageModel
from lacuna.setups.language_models import ModelConfig as ModelConfig
from lacuna.setups.language_models import architecture as architecture
from lacuna.setups.language_models import open_model as open_model
from lacuna.setups.language_tasks import TaskConfig as TaskConfig
