"""Models as pure functions over plain trees of arrays."""

from lacuna.models.block import CausalLMSpec as CausalLMSpec
from lacuna.models.causal_lm import causal_lm as causal_lm
from lacuna.models.decoding import greedy as greedy
from lacuna.models.lora import Lora as Lora
from lacuna.models.lora import LoraSite as LoraSite
from lacuna.models.lora import LoraSpec as LoraSpec
from lacuna.models.lora import linear_sites as linear_sites
from lacuna.models.lora import lora_spec as lora_spec
from lacuna.models.lora import merged as merged
from lacuna.models.lora import over_adapter as over_adapter
from lacuna.models.model import Model as Model
from lacuna.models.model import Output as Output
from lacuna.models.moved import Moved as Moved
from lacuna.models.moved import PlusLowRank as PlusLowRank
from lacuna.models.moved import beside as beside
from lacuna.models.moved import layer_by_layer as layer_by_layer
from lacuna.models.moved import searchable as searchable
from lacuna.models.precision import narrowed as narrowed
from lacuna.models.scoring import choice_logits as choice_logits
from lacuna.models.scoring import logits_at as logits_at
from lacuna.models.scoring import nats_at as nats_at
from lacuna.models.scoring import next_token_nats as next_token_nats
from lacuna.models.scoring import next_token_right as next_token_right
from lacuna.models.scoring import span_nats as span_nats
from lacuna.models.synthetic import SyntheticSpec as SyntheticSpec
from lacuna.models.synthetic import synthetic as synthetic
