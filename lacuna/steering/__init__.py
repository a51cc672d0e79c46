"""From weights to activations and back: contrast vectors, the shift of a step, steering, and what both are worth."""

from lacuna.steering.activations import Read as Read
from lacuna.steering.activations import read_stream as read_stream
from lacuna.steering.caa import SteeringVectors as SteeringVectors
from lacuna.steering.caa import load_vectors as load_vectors
from lacuna.steering.caa import paired as paired
from lacuna.steering.caa import save_vectors as save_vectors
from lacuna.steering.caa import statement as statement
