"""From a draw's index to its losses: the compiled program whose bits a score depends on.

A score is the output of one loop body, `loss(params + scale * noise)`. Everything around that body may
change from run to run (chunk, devices, processes, how many sigmas); the body may not. Three habits keep it
so:

- signed sigmas are *data* of an inner loop, one after the other: a vmap over them changes bits;
- so is the number of trips: XLA inlines a loop that it knows to run once, and the body is then compiled as
  part of what stands around it;
- several candidates at once (`width` > 1) make other matrix products and other last bits, so the width is
  part of a run's identity, and finalists are scored again at width 1.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Integer

from lacuna import keys, meshes, trees
from lacuna.errors import InvalidInput
from lacuna.search import draws
from lacuna.search.families import Family
from lacuna.search.objectives import with_data
from lacuna.types import Batch, Delta, Factors, Key, Layer, Loss, Noise, Objective, Params


class Scales(NamedTuple):
    """Signed scales at which a draw is scored.

    Attributes:
      values: +sigma, -sigma for every sigma in order, or +sigma alone; never fewer than two, because XLA takes what
        does not change from trip to trip out of a loop.
      count: how many of them are evaluated, as data; the scores of the others are zero.
    """

    values: Float[Array | np.ndarray, "C"]
    count: Integer[Array | np.generic, ""]


HERE = Scales(np.zeros(2, np.float32), np.int32(1))
"""One candidate at the base point itself."""


class Program(NamedTuple):
    """What is compiled, beside the shapes.

    Attributes:
      objective: what is scored.
      width: candidates evaluated side by side on a device.
      exact_radius: every draw is divided by its length, so that a scale is the length of a step.
      split: how leaves are split over the axis `model` of a mesh, by name; noise is made where it is used.
    """

    objective: Objective
    width: int = 1
    exact_radius: bool = False
    split: tuple[tuple[str, PartitionSpec], ...] = ()

    @property
    def layerwise(self) -> bool:
        """Whether the objective makes a candidate's weights where it uses them."""
        return self.objective.perturbed_loss is not None

    @property
    def beside(self) -> bool:
        """Whether the objective takes the noise beside the weights."""
        return self.objective.noisy_loss is not None

    def placed(self, leaf_name: str, noise: Array, *, leading: int = 0) -> Array:
        """The noise of a leaf (of one layer of it for `leading` -1, of several draws for 1), split as the leaf is."""
        spec = dict(self.split).get(leaf_name)
        if spec is None:
            return noise
        parts = (None,) * leading + tuple(spec)[max(-leading, 0) :]
        return lax.with_sharding_constraint(noise, PartitionSpec(*parts))

    def placed_factors(self, leaf_name: str, noise: Array | Factors) -> Array | Factors:
        """The same for noise that may be factors: each is split as its own axes of the leaf are."""
        if not isinstance(noise, Factors):
            return self.placed(leaf_name, noise)
        spec = dict(self.split).get(leaf_name)
        if spec is None:
            return noise
        within = noise.left.ndim - 2  # layers in front
        axes = tuple(spec) + (None,) * (noise.right.ndim - len(spec))
        left, right = (*axes[: within + 1], None), (*axes[:within], None, *axes[within + 1 :])
        return Factors(
            lax.with_sharding_constraint(noise.left, PartitionSpec(*left)),
            lax.with_sharding_constraint(noise.right, PartitionSpec(*right)),
        )


Programs = dict[tuple[Program, Mesh, int], jax.stages.Wrapped]
"""Steps by what they were made for: a program, a mesh, and room for so many trips."""


def program_of(loss: Loss | Objective, family: Family, *, width: int = 1, exact_radius: bool = False) -> Program:
    """The program of a loss, a callable or an `Objective`, under a family.

    What it does not read is not part of it: answers for metrics, and one of the two ways to make weights as they are
    used. Noise that has factors, or is formed whole, is taken beside them; other noise is made layer by layer, if the
    objective asks for it.
    """
    objective = loss if isinstance(loss, Objective) else Objective(loss)
    try:
        hash(objective)
    except TypeError as fault:
        raise InvalidInput("a loss must be hashable, because it names a compiled program", got=fault) from fault
    by_layer = None if family.factored or family.block > 1 else objective.perturbed_loss
    noisy = objective.noisy_loss if by_layer is None else None
    return Program(Objective(objective.loss, None, by_layer, noisy), width, exact_radius)


def signed_scales(sigmas: tuple[float, ...], antithetic: bool) -> Scales:
    """`+sigma, -sigma` for every sigma in order, or `+sigma` alone."""
    signs = (1.0, -1.0) if antithetic else (1.0,)
    values = [sigma * sign for sigma in sigmas for sign in signs]
    return Scales(np.asarray(values + [0.0] * (2 - len(values)), np.float32), np.int32(len(values)))


def _one_by_one(at: Callable[[Float[Array, ""]], Any], scales: Scales) -> Float[Array, "C"]:
    """`at(scale)` for one scale after the other: the canonical loop, around the canonical body.

    Raises:
      InvalidInput: at trace time, if `at` does not give one floating-point number.
    """
    values = jnp.asarray(scales.values)

    def trip(i: Integer[Array, ""], scores: Float[Array, "C"]) -> Float[Array, "C"]:
        found = at(values[i])
        if getattr(found, "shape", None) != () or not jnp.issubdtype(found.dtype, jnp.floating):
            got = jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}", found)
            raise InvalidInput("loss(params, batch) must return one floating-point scalar", got=got)
        return scores.at[i].set(found.astype(jnp.float32))

    return lax.fori_loop(0, scales.count, trip, jnp.zeros_like(values))


def scores_on_line(loss: Loss, params: Params, delta: Delta, scales: Scales, batch: Batch) -> Float[Array, "C"]:
    """Losses at `params + scale * delta`, one scale after the other."""
    return _one_by_one(lambda scale: loss(trees.axpy(scale, delta, params), batch), scales)


def _scores_layer_by_layer(
    objective: Objective,
    params: Params,
    noise: Callable[[str, Layer, Array], Array],
    scales: Scales,
    batch: Batch,
) -> Float[Array, "C"]:
    """The same for an objective that asks for its weights leaf by leaf; noise is made anew for each scale."""
    perturbed_loss = objective.perturbed_loss
    assert perturbed_loss is not None

    def at(scale: Float[Array, ""]) -> Float[Array, ""]:
        def move(leaf_name: str, layer: Layer, leaf: Array) -> Array:
            return trees.axpy(scale, noise(leaf_name, layer, leaf), leaf)

        return perturbed_loss(params, move, batch)

    return _one_by_one(at, scales)


def _scores_beside(
    objective: Objective, params: Params, noise: Noise, scales: Scales, batch: Batch
) -> Float[Array, "C"]:
    """The same for an objective that takes the noise beside the weights."""
    noisy_loss = objective.noisy_loss
    assert noisy_loss is not None
    return _one_by_one(lambda scale: noisy_loss(params, noise, scale, batch), scales)


def _scores_of_noise(
    program: Program, family: Family, params: Params, batch: Batch, scales: Scales, noise: Noise
) -> Float[Array, "C"]:
    """One draw that is there, at every signed scale."""
    if program.exact_radius:
        scales = scales._replace(values=scales.values / draws.length_of(family, params, noise))
    if program.beside:
        return _scores_beside(program.objective, params, noise, scales, batch)
    return scores_on_line(program.objective.loss, params, noise, scales, batch)


def scores_of_draw(
    program: Program,
    family: Family,
    params: Params,
    batch: Batch,
    key: Key,
    index: Integer[Array, ""],
    scales: Scales,
) -> Float[Array, "C"]:
    """One draw of noise at every signed scale; `family.block` is 1."""
    if not program.layerwise:
        of_candidate = keys.candidate(key, index)
        made = (family.factored_draw if program.beside else family.draw)(of_candidate, params)
        made = trees.map_named(lambda name, leaf, noise: program.placed_factors(name, noise), params, made)
        return _scores_of_noise(program, family, params, batch, scales, made)
    of_draw = draws.noise_of_draw(family, params, key, index)

    def noise(leaf_name: str, layer: Layer, like: Array | jax.ShapeDtypeStruct) -> Array:
        return program.placed(leaf_name, of_draw(leaf_name, layer, like), leading=0 if layer is None else -1)

    if program.exact_radius:  # of which no part is known before the whole is
        scales = scales._replace(values=scales.values / draws.length(family, params, noise))
    return _scores_layer_by_layer(program.objective, params, noise, scales, batch)


def unit(family: Family, width: int) -> int:
    """Draws that one device evaluates in one trip of its outer loop."""
    return width if family.block == 1 else family.block


def local_scores(
    program: Program,
    family: Family,
    params: Params,
    batch: Batch,
    key: Key,
    scales: Scales,
    first: Integer[Array, ""],
    trips: Integer[Array, ""],
    capacity: int,
) -> Float[Array, "n C"]:
    """One device's share of a step: the scores of `trips` times `unit` draws from `first` on, in the first rows.

    The number of trips is data: no chunk, remainder or resumed range is compiled anew.

    Args:
      capacity: trips that there is room for; the rows of those that are not made are zero.
    """
    if family.block == 1:
        of_draw = partial(scores_of_draw, program, family, params, batch, key, scales=scales)

        def of_unit(start: Integer[Array, ""]) -> Float[Array, "n C"]:
            if program.width == 1:
                return of_draw(start)[None]
            return jax.vmap(of_draw)(start + jnp.arange(program.width, dtype=jnp.uint32))
    else:
        of_delta = partial(_scores_of_noise, program, family, params, batch, scales)

        def of_unit(start: Integer[Array, ""]) -> Float[Array, "n C"]:
            made = draws.block_of(family, params, key, start)
            deltas = trees.map_named(partial(program.placed, leading=1), made)
            return lax.map(of_delta, deltas, batch_size=program.width if program.width > 1 else None)

    size = unit(family, program.width)

    def trip(i: Integer[Array, ""], scores: Float[Array, "n C"]) -> Float[Array, "n C"]:
        at = i.astype(jnp.uint32) * size
        return lax.dynamic_update_slice(scores, of_unit(first + at), (at, jnp.uint32(0)))

    return lax.fori_loop(0, trips, trip, jnp.zeros((capacity * size, scales.values.shape[0]), jnp.float32))


def make_step(
    program: Program, params: Params, mesh: Mesh, *, capacity: int, programs: Programs | None = None
) -> jax.stages.Wrapped:
    """The jitted step `(family, params, batch, key, scales, first, trips, control) -> (scores, control)`.

    Each device of the axis `candidates` evaluates `trips` units of draws, the first device those from `first` on,
    the next one those that follow. Weights, data and a basis are arguments, never constants of the program; what
    is split over the axis `model` stays split, and so is the noise on it.

    `control`, int32 [candidates, model, 2], carries a word from every process to all of them: what comes back is
    the largest of each of its two numbers.

    Args:
      capacity: trips that there is room for.
      programs: steps that were made before; one of them is used again where it fits, else the new one is added.

    Returns:
      The scores f32[candidates * capacity * unit, C], of which each device's first `trips * unit` count, and the
      control, int32[2]; both on every device.
    """
    program = program._replace(split=split_over_model(params, mesh))
    key = program, mesh, capacity
    if programs is not None and key in programs:
        return programs[key]

    def on_device(
        family: Family,
        params: Params,
        batch: Batch,
        key: Key,
        scales: Scales,
        first: Array,
        trips: Array,
        control: Array,
    ) -> tuple[Array, Array]:
        size = unit(family, program.width)
        own = lax.axis_index(meshes.CANDIDATES).astype(jnp.uint32) * trips.astype(jnp.uint32) * size
        scores = local_scores(program, family, params, batch, key, scales, first + own, trips, capacity)
        said = lax.pmax(jnp.max(control, axis=(0, 1)), meshes.CANDIDATES)
        return lax.all_gather(scores, meshes.CANDIDATES, tiled=True), said

    everywhere, spread = PartitionSpec(), PartitionSpec(meshes.CANDIDATES)
    step = jax.jit(
        jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(everywhere,) * 7 + (spread,),
            out_specs=everywhere,
            axis_names={meshes.CANDIDATES},  # the axis `model` is left to the compiler
            check_vma=False,  # the all_gather makes the scores replicated; the checker cannot see it
        )
    )
    if programs is not None:
        programs[key] = step
    return step


def split_over_model(tree: Any, mesh: Mesh) -> tuple[tuple[str, PartitionSpec], ...]:
    """The leaves of a tree on the mesh that are split over its axis `model`, and how."""
    shardings = {name: getattr(leaf, "sharding", None) for name, leaf in trees.named_leaves(tree)}
    return tuple(
        (name, sharding.spec)
        for name, sharding in shardings.items()
        if isinstance(sharding, NamedSharding) and sharding.mesh == mesh and not sharding.is_fully_replicated
    )


_scores_on_line = jax.jit(scores_on_line, static_argnums=0)


@partial(jax.jit, static_argnums=0)
def _scores_where_it_is(objective: Objective, params: Params, batch: Batch, scales: Scales) -> Float[Array, "C"]:
    def standing(leaf_name: str, layer: Layer, leaf: Array) -> Array:
        del leaf_name, layer
        return leaf.astype(jnp.float32)

    return _scores_layer_by_layer(objective, params, standing, scales, batch)


_scores_beside_itself = jax.jit(_scores_beside, static_argnums=0)


def score(loss: Loss | Objective, params: Params, batch: Batch) -> Float[Array, ""]:
    """The loss at a point by the canonical program, so that it may be compared with a sweep bit for bit.

    `score(loss, candidate(params, sweep, i, sigma, sign), batch)` equals the score that a width-1 sweep
    recorded for that candidate; where the sweep had its noise as factors, to rounding. A plain `jit(loss)` is another
    program, and may differ in the last bits.
    """
    # The point itself serves as the direction, at scale zero, and both are data: constants would be folded
    # away, and the loop body would no longer be the sweep's.
    objective, batch = with_data(loss, batch)
    if objective.perturbed_loss is not None:
        objective = objective._replace(noisy_loss=None)
        return _scores_where_it_is(objective, params, batch, HERE)[0]
    if objective.noisy_loss is not None:
        return _scores_beside_itself(objective, params, params, HERE, batch)[0]
    return _scores_on_line(objective.loss, params, params, HERE, batch)[0]


@partial(jax.jit, static_argnums=0)
def score_candidates(
    program: Program,
    family: Family,
    params: Params,
    batch: Batch,
    key: Key,
    ids: Integer[Array, "K"],
    scales: Float[Array, "K"],
    count: Integer[Array | np.generic, ""],
) -> Float[Array, "K"]:
    """Losses of single candidates `(id, signed scale)` at width 1: the canonical program for finalists.

    Args:
      count: one, as data.
    """

    def of_candidate(i: Integer[Array, ""], found: Float[Array, "K"]) -> Float[Array, "K"]:
        alone = Scales(jnp.stack([scales[i], 0.0]), count)
        if family.block == 1:
            scored = scores_of_draw(program, family, params, batch, key, ids[i], alone)
        else:
            scored = _scores_of_noise(program, family, params, batch, alone, draws.draw(family, params, key, ids[i]))
        return found.at[i].set(scored[0])

    return lax.fori_loop(0, jnp.asarray(count) * len(ids), of_candidate, jnp.zeros_like(scales))
