"""How much of a displacement lies in each basis, as records, beside every level that it must be read against.

A capture says nothing by itself: a random subspace of rank k holds k / P of any vector, with a known law; a basis that
favours some layers holds more of whatever lies there, which displacements of the same size in every place show; and a
basis of text in general is told from one of the task by another task's.

Source: arXiv 2606.10929; the controls are ours.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lacuna import geometry, keys, theory, trees
from lacuna.captures.bases import BasisSpec, task_basis
from lacuna.errors import GeometryError, InvalidInput
from lacuna.reports.records import Place, Record
from lacuna.training import BatchAt
from lacuna.types import Batch, Delta, Key, Loss, Params

EXPERIMENT = "capture"

LEVEL = 0.95
"""Probability of the intervals of random levels."""

Law = Literal["random signs", "random entries"]
"""Of a displacement to compare with: the entries of the real one with random signs, or normal entries of the same norm
in every block (each leaf, and each layer of a stacked leaf)."""

Told = Callable[[str], None]


class TaskAt(NamedTuple):
    """A task, as bases are made of it.

    Attributes:
      loss: `loss(params, batch)`.
      batches: `batches(step) -> batch`, pure and traceable.
    """

    loss: Loss
    batches: BatchAt


class _Block(NamedTuple):
    """A leaf, or one layer of a stacked leaf.

    Attributes:
      leaf: its name.
      kind: of matrix: the leaf's name without the stack's and without that of its part.
      layer: from 0; of a leaf that is not stacked, the first part of its name.
    """

    leaf: str
    kind: str
    layer: int | str


def displacement(start: Params, end: Params) -> Delta:
    """`end - start`, float32 whatever the points are kept in.

    Raises:
      TreeMismatch: the points are not of one model; names the first leaf that differs.
      GeometryError: a leaf that is not floating, or weights that are not finite; names the leaf.
      InvalidInput: the points are equal.
    """
    trees.check_match("a displacement", start, end)
    for name, leaf in trees.named_leaves(start):
        if not trees.is_floating(leaf):
            raise GeometryError("a displacement has floating leaves only", got=f"`{name}` of {leaf.dtype}")
    for which, point in (("start", start), ("end", end)):
        for name, count in trees.named_leaves(jax.device_get(_num_nonfinite(point))):
            if count:
                raise GeometryError(
                    f"the {which} of a displacement must be finite",
                    got=f"{count} not so in `{name}`",
                    hint="a checkpoint from before it diverged",
                )
    delta, largest = _difference(start, end)
    if not float(largest):
        raise InvalidInput(
            "a displacement needs two points",
            got="two whose weights are all equal",
            hint="a model and what was fine-tuned from it",
        )
    return delta


@jax.jit
def _num_nonfinite(point: Params) -> Params:
    return jax.tree.map(lambda leaf: jnp.sum(~jnp.isfinite(leaf)), point)


@jax.jit
def _difference(start: Params, end: Params) -> tuple[Delta, Float[Array, ""]]:
    delta = jax.tree.map(lambda a, b: b.astype(jnp.float32) - a.astype(jnp.float32), start, end)
    sizes = [jnp.max(jnp.abs(leaf), initial=0.0) for leaf in jax.tree.leaves(delta)]
    return delta, jnp.max(jnp.stack(sizes))


def measure(
    start: Params,
    delta: Delta,
    specs: Sequence[BasisSpec],
    *,
    task: TaskAt | None = None,
    control: TaskAt | None = None,
    held_out: Sequence[Batch] = (),
    stacked: Callable[[str], bool] = lambda name: False,
    seed: int = 0,
    num_draws: int = 8,
    told: Told = lambda sentence: None,
) -> list[Record]:
    """What each basis, made at the start, captures of the displacement, with its controls.

    A random basis of the same rank is measured beside the others, asked for or not. Bases are made one after the other
    and dropped: at a time there are the start, the displacement, and what `task_basis` takes of memory for one.

    Args:
      start: the point where the displacement begins and the bases are made.
      delta: the displacement, as made by `displacement`.
      specs: the bases.
      task: of the bases that need one.
      control: another task, of which each of those bases is made once more.
      held_out: batches of the task's loss, at which functional recovery is measured; none for not at all.
      stacked: which leaves have a leading axis of layers.
      seed: of random bases and displacements.
      num_draws: random displacements of each law.
      told: called with a sentence at each stage.

    Returns:
      Records of the experiment `capture`. Of the displacement: `num_params`, `params_norm`, `displacement_norm`,
      `relative_radius` and `block_mass_share`; `loss` and `loss_drop` on the held-out batches. Of each basis, with
      `basis`, `task` and `rank` in `where`: `asked_rank`, `status`, `capture_mass`, `capture_norm`, `random_mass` with
      `random_low` and `random_high`, `control_mass` by `law` and `draw`, `functional_recovery`, and `block_capture`
      with its level `block_random`, of the basis cut into blocks and orthonormalised in each. Those of blocks have `by`
      in `where`: `all` blocks together, each `layer`, each `kind` of matrix, each `leaf` and layer.

    Raises:
      InvalidInput: a basis that needs a task without one, or no draws.
      NotFinite, GeometryError: as `task_basis`.
    """
    if num_draws < 1:
        raise InvalidInput("num_draws must be at least 1", got=num_draws, hint="8")
    if not any(spec.kind == "random" for spec in specs):
        specs = [*specs, BasisSpec("random", rank=max((spec.rank for spec in specs), default=1))]
    found = list(_of_displacement(start, delta, stacked))
    losses = None if task is None or not held_out else _losses(task.loss, start, delta, held_out)
    if losses is not None:
        told("Losses on held-out rows")
        found += _of_losses(losses)
    for spec in specs:
        sources = {"": None} if spec.kind == "random" else {"own": task} | ({"control": control} if control else {})
        for name, source in sources.items():
            began = time.perf_counter()
            told(f"Basis: {spec.kind}{', of the control task' if name == 'control' else ''}")
            loss, batches = (None, None) if source is None else source
            basis = task_basis(spec, loss, start, batches, seed=seed)
            where: dict[str, Place] = {"basis": spec.kind, "task": name, "rank": int(basis.rank)}
            found.append(_record("asked_rank", spec.rank, where))
            found += measure_basis(basis, delta, where, stacked=stacked, seed=seed, num_draws=num_draws)
            if losses is not None:
                found += _recovered(losses, basis, delta, where)
            found.append(Record(EXPERIMENT, "wall_s", time.perf_counter() - began, "s", where))
            del basis
    return found


def _record(quantity: str, value: object, where: dict[str, Place], unit: str = "1") -> Record:
    return Record(EXPERIMENT, quantity, float(np.asarray(value)), unit, where)


def _of_displacement(start: Params, delta: Delta, stacked: Callable[[str], bool]) -> Iterator[Record]:
    """Where the displacement has its mass, and how long it is beside the weights."""
    is_stacked = tuple(name for name in trees.leaf_names(delta) if stacked(name))
    squares, weights = (_block_values(_block_squares(tree, is_stacked)) for tree in (delta, start))
    blocks, total = list(_blocks(delta, is_stacked)), sum(squares)
    yield _record("num_params", trees.size(delta), {})
    yield _record("displacement_norm", total**0.5, {})
    yield _record("params_norm", sum(weights) ** 0.5, {})
    for where, chosen in _groups(blocks):
        moved, there = (sum(values[i] for i in chosen) for values in (squares, weights))
        yield _record("block_mass_share", moved / total, where)
        yield _record("relative_radius", (moved / there) ** 0.5 if there else float("nan"), where)


def measure_basis(
    basis: geometry.Basis,
    delta: Delta,
    where: dict[str, Place],
    *,
    stacked: Callable[[str], bool] = lambda name: False,
    seed: int = 0,
    num_draws: int = 8,
) -> Iterator[Record]:
    """What one basis captures of a displacement, of random ones beside it, and of each block.

    Args:
      basis: any, of the displacement's tree.
      delta: the displacement.
      where: goes into all records.
      stacked: as for `measure`, like the rest.
      seed: of the random displacements.
      num_draws: of each law.
    """
    rank, size = int(basis.rank), trees.size(delta)
    captured = geometry.capture(basis, delta)
    low, high = (theory.mass_quantile(rank, size, q) for q in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    words = ", ".join(f"{bit.name}".lower().replace("_", " ") for bit in geometry.Status if bit & int(basis.status))
    yield _record("status", basis.status, where | {"words": words})
    yield _record("capture_mass", captured.mass, where)
    yield _record("capture_norm", captured.norm, where)
    yield _record("random_mass", rank / size, where)
    yield _record("random_low", low, where | {"level": LEVEL})
    yield _record("random_high", high, where | {"level": LEVEL})

    is_stacked = tuple(name for name in trees.leaf_names(delta) if stacked(name))
    draws = list(product(get_args(Law), range(num_draws)))
    masses = []
    for law, draw in draws:
        key = keys.candidate(keys.stream(seed, f"captures/{law}"), draw)
        drawn = _as_long(key, delta, jnp.bool_(law == "random signs"), is_stacked)
        masses.append(geometry.capture(basis, drawn).mass)
    for (law, draw), mass in zip(draws, jax.device_get(masses), strict=True):
        yield _record("control_mass", mass, where | {"law": law, "draw": draw})

    inside, levels = _block_captures(basis, delta, stacked)
    squares = _block_values(_block_squares(delta, is_stacked))
    for place, chosen in _groups(list(_blocks(delta, is_stacked))):
        here = sum(squares[i] for i in chosen)
        for quantity, values in (("block_capture", inside), ("block_random", levels)):
            held = sum(squares[i] * values[i] for i in chosen)
            yield _record(quantity, held / here if here else float("nan"), where | place)


@partial(jax.jit, static_argnames="stacked")
def _as_long(key: Key, delta: Delta, signs_alone: Bool[Array, ""], stacked: tuple[str, ...]) -> Delta:
    """A random displacement that is as long as the real one in every block, by either law: one program for both."""

    def drawn(name: str, leaf: Array) -> Array:
        noise = jax.random.normal(keys.leaf(key, name), leaf.shape, leaf.dtype)
        axes = tuple(range(name in stacked, leaf.ndim))
        there, wanted = (jnp.sum(jnp.square(x), axis=axes, keepdims=True) for x in (noise, leaf))
        entries = noise * jnp.sqrt(wanted / jnp.where(there > 0, there, 1.0))
        return jnp.where(signs_alone, jnp.where(noise < 0, -leaf, leaf), entries)

    return trees.map_named(drawn, delta)


def _block_captures(
    basis: geometry.Basis, delta: Delta, stacked: Callable[[str], bool]
) -> tuple[list[float], list[float]]:
    """Capture and random level within every block; leaf by leaf, so that no second basis is held as a whole."""
    masses, levels = [], []
    for (name, rows), part in zip(trees.named_leaves(basis.rows), jax.tree.leaves(delta), strict=True):
        mass, level = _in_blocks(rows, part, stacked=stacked(name))
        masses.append(mass)
        levels.append(level)
    return _block_values(masses), _block_values(levels)


@partial(jax.jit, static_argnames="stacked")
def _in_blocks(rows: Array, part: Array, *, stacked: bool) -> tuple[Array, Array]:
    """Of a leaf as a tree of its own, without a name: leaves of one shape share a program."""
    own = geometry.block_orthonormalise(rows, stacked=lambda _: stacked)
    blocks = geometry.block_capture(own, part).blocks
    return blocks.mass, jnp.broadcast_to(blocks.random_mass, blocks.mass.shape)


@partial(jax.jit, static_argnames="stacked")
def _block_squares(tree: Delta, stacked: tuple[str, ...]) -> Delta:
    """`|x_b|^2` of every block, float32; one number a leaf, or one a layer of a stacked leaf."""

    def of_leaf(name: str, leaf: Array) -> Array:
        return jnp.sum(jnp.square(leaf.astype(jnp.float32)), axis=tuple(range(name in stacked, leaf.ndim)))

    return trees.map_named(of_leaf, tree)


def _block_values(values: Delta) -> list[float]:
    """Numbers of blocks, in the order of `_blocks`."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(values))]).astype(float).tolist()


def _blocks(delta: Delta, stacked: tuple[str, ...]) -> Iterator[_Block]:
    """All blocks: leaves in the tree's order, and the layers of each."""
    for name, leaf in trees.named_leaves(delta):
        parts = name.split("/")
        own = parts[1:] if name in stacked and len(parts) > 1 else parts
        own = own[:-1] if len(own) > 1 and own[-1] in ("kernel", "bias", "scale") else own
        if name in stacked:
            yield from (_Block(name, "/".join(own), layer) for layer in range(leaf.shape[0]))
        else:
            yield _Block(name, "/".join(own), parts[0])


def _groups(blocks: Sequence[_Block]) -> Iterator[tuple[dict[str, Place], list[int]]]:
    """Where to file a group of blocks, and which blocks it has: all; a layer; a kind of matrix; one by one."""
    yield {"by": "all"}, list(range(len(blocks)))
    for by in ("layer", "kind"):
        groups: dict[Place, list[int]] = {}
        for i, block in enumerate(blocks):
            groups.setdefault(getattr(block, by), []).append(i)
        yield from (({"by": by, by: place}, chosen) for place, chosen in groups.items())
    for i, block in enumerate(blocks):
        yield {"by": "leaf", "leaf": block.leaf, "kind": block.kind, "layer": block.layer}, [i]


class _Losses(NamedTuple):
    """The loss on held-out batches at both ends of the displacement.

    Attributes:
      loss: as data.
      start: the point; in float32, because a projection is short and one in bfloat16 would not move.
      batches: the held-out ones.
      at_start: the loss there, batch by batch, float64.
      at_end: the same.
    """

    loss: Loss
    start: Params
    batches: Sequence[Batch]
    at_start: np.ndarray
    at_end: np.ndarray


def _losses(loss: Loss, start: Params, delta: Delta, batches: Sequence[Batch]) -> _Losses:
    loss = trees.as_data(loss)
    start = jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), start)
    ends = (start, trees.axpy(1.0, delta, start))
    return _Losses(loss, start, batches, *(_by_batch(loss, point, batches) for point in ends))


def _by_batch(loss: Loss, params: Params, batches: Sequence[Batch]) -> np.ndarray:
    return np.asarray(jax.device_get([_value(loss, params, batch) for batch in batches]), np.float64)


_value = jax.jit(lambda loss, params, batch: loss(params, batch))


def _of_losses(losses: _Losses) -> Iterator[Record]:
    """The loss at both ends, how far it drops between them, and the error of that over the batches."""
    for point, values in (("start", losses.at_start), ("end", losses.at_end)):
        yield _record("loss", np.mean(values), {"point": point}, "loss")
    drops, num = losses.at_start - losses.at_end, len(losses.batches)
    yield _record("loss_drop", np.mean(drops), {"num_batches": num}, "loss")
    error = np.std(drops, ddof=1) / num**0.5 if num > 1 else float("nan")
    yield _record("loss_drop_error", error, {"num_batches": num}, "loss")


def _recovered(losses: _Losses, basis: geometry.Basis, delta: Delta, where: dict[str, Place]) -> Iterator[Record]:
    """The share of the loss drop that the projection keeps; nothing where the loss does not drop."""
    drop = np.mean(losses.at_start - losses.at_end)
    if drop > 0:
        point = trees.axpy(1.0, geometry.project(basis, delta), losses.start)
        kept = np.mean(losses.at_start - _by_batch(losses.loss, point, losses.batches))
        yield _record("functional_recovery", kept / drop, where)
