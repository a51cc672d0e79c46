"""From weights to activations and back: contrast vectors, the shift of a step, steering, and what both are worth."""

from lacuna.steering.activations import Read as Read
from lacuna.steering.activations import read_stream as read_stream
from lacuna.steering.caa import SteeringVectors as SteeringVectors
from lacuna.steering.caa import load_vectors as load_vectors
from lacuna.steering.caa import paired as paired
from lacuna.steering.caa import save_vectors as save_vectors
from lacuna.steering.caa import statement as statement
from lacuna.steering.cosines import CosineMap as CosineMap
from lacuna.steering.cosines import cosine_map as cosine_map
from lacuna.steering.cosines import example_shifts as example_shifts
from lacuna.steering.cosines import unembedding_difference as unembedding_difference
from lacuna.steering.margins import choice_margin as choice_margin
from lacuna.steering.margins import label_loss as label_loss
from lacuna.steering.margins import label_step as label_step
from lacuna.steering.nulls import Null as Null
from lacuna.steering.nulls import shuffled_labels as shuffled_labels
from lacuna.steering.pushforward import module_shifts as module_shifts
from lacuna.steering.pushforward import pullback as pullback
from lacuna.steering.pushforward import pushforward as pushforward
from lacuna.steering.pushforward import reading as reading
from lacuna.steering.pushforward import restricted as restricted
from lacuna.steering.pushforward import shift as shift
