"""Jitted kernels for the local geometry of a parameter tree: bases, captures, angles, spectra.

Trees in, trees out: a vector is any tree of floating leaves, rows are the same tree with a leading axis k.
Needs jax and numpy alone. Every result that can go wrong carries a `status`.
"""

from lacuna.geometry.angles import Drift as Drift
from lacuna.geometry.angles import drift as drift
from lacuna.geometry.angles import overlap as overlap
from lacuna.geometry.angles import principal_angles as principal_angles
from lacuna.geometry.basis import Appended as Appended
from lacuna.geometry.basis import Basis as Basis
from lacuna.geometry.basis import append as append
from lacuna.geometry.basis import empty as empty
from lacuna.geometry.basis import orthonormalise as orthonormalise
from lacuna.geometry.capture import Capture as Capture
from lacuna.geometry.capture import Signal as Signal
from lacuna.geometry.capture import capture as capture
from lacuna.geometry.capture import functional_recovery as functional_recovery
from lacuna.geometry.capture import project as project
from lacuna.geometry.capture import random_mass as random_mass
from lacuna.geometry.capture import signal as signal
from lacuna.geometry.gradient_basis import gradient_basis as gradient_basis
from lacuna.geometry.krylov import KrylovInfo as KrylovInfo
from lacuna.geometry.krylov import krylov as krylov
from lacuna.geometry.random_basis import BlockBasis as BlockBasis
from lacuna.geometry.random_basis import BlockCapture as BlockCapture
from lacuna.geometry.random_basis import Blocks as Blocks
from lacuna.geometry.random_basis import block_capture as block_capture
from lacuna.geometry.random_basis import block_orthonormalise as block_orthonormalise
from lacuna.geometry.random_basis import random_basis as random_basis
from lacuna.geometry.random_basis import random_block_basis as random_block_basis
from lacuna.geometry.rows import gram as gram
from lacuna.geometry.sketch import Sketch as Sketch
from lacuna.geometry.spectrum import Spectrum as Spectrum
from lacuna.geometry.spectrum import spectrum as spectrum
from lacuna.geometry.spectrum import spectrum_of as spectrum_of
from lacuna.geometry.status import Status as Status
from lacuna.geometry.streamed import Grams as Grams
from lacuna.geometry.streamed import sketched_gram as sketched_gram
from lacuna.geometry.streamed import streamed_gram as streamed_gram
from lacuna.geometry.trajectory import extrapolate as extrapolate
from lacuna.geometry.trajectory import prefix_captures as prefix_captures
from lacuna.geometry.trajectory import remainder_captures as remainder_captures
from lacuna.geometry.trajectory import task_vector_basis as task_vector_basis
from lacuna.geometry.trajectory import trajectory_prefix as trajectory_prefix
