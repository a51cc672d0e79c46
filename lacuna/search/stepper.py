"""The loop over chunks: what is dispatched next, how much of it, and when to stop, in step on every host."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from lacuna import hosts, keys, meshes
from lacuna.search import evaluate
from lacuna.search.evaluate import Program
from lacuna.search.ledger import Range
from lacuna.search.sweep import Sweep
from lacuna.types import Batch, Params

CHUNK_S = 1.0
"""Seconds of device time that a chunk is made to take."""

GROWTH = 8
"""A chunk is at most this many times as long as the one that was timed."""

ROOM = 8192
"""Draws that a chunk has room for over all devices, or a few on each device where there are many."""


class Block(NamedTuple):
    """The scores of some consecutive draws, on the host.

    Attributes:
      start: index of the first.
      scores: losses.
      stop: 0, or the largest word that any host has said with `stop`.
    """

    start: int
    scores: Float[np.ndarray, "n sigmas signs"]
    stop: int


class _InFlight(NamedTuple):
    start: int
    stop: int
    aligned: int
    trips: int
    sent_at: float
    scores: Array
    said: Array


class Stepper:
    """The compiled step of a sweep, and the loop that feeds it.

    The number of draws of a chunk is data, so one program serves them all. It follows the clock: by the first
    host's, since all have to dispatch the same.

    Attributes:
      step: as `evaluate.make_step` gives it.
      compiled: the same, compiled for `arguments`.
      granule: draws of a chunk of one trip, over all devices.
      capacity: most trips of a chunk.
    """

    def __init__(
        self,
        program: Program,
        sweep: Sweep,
        params: Params,
        batch: Batch,
        mesh: Mesh,
        programs: evaluate.Programs | None = None,
    ):
        self._mesh = mesh
        self._shape = (len(sweep.sigmas), sweep.num_signs)
        self._unit = evaluate.unit(sweep.family, program.width)
        self._align = sweep.family.block
        self.granule = mesh.shape[meshes.CANDIDATES] * self._unit
        room = max(ROOM, 256 * self.granule) if sweep.chunk is None else sweep.chunk
        self.capacity = math.ceil(min(room, sweep.num_candidates + self._align) / self.granule)
        self._fixed_trips = None if sweep.chunk is None else self.capacity
        factor = sweep.scale(params)
        scales = evaluate.signed_scales(tuple(sigma * factor for sigma in sweep.sigmas), sweep.antithetic)
        self._fixed = meshes.place((sweep.family, params, batch, keys.root(sweep.seed), scales), mesh)
        self.step = evaluate.make_step(program, self._fixed[1], mesh, capacity=self.capacity, programs=programs)
        self.compiled = self.step.lower(*self.arguments(0, 1)).compile()

    def arguments(self, first: int, trips: int, word: int = 0, wanted: int = 0) -> tuple[Any, ...]:
        """Of the step: it evaluates `trips` units of draws on every device, from draw `first` on."""
        return *self._fixed, np.uint32(first % keys.SEED_LIMIT), np.int32(trips), self._control(word, wanted)

    @property
    def point(self) -> tuple[Params, Batch]:
        """The base point and the batch as they lie on the mesh."""
        return self._fixed[1], self._fixed[2]

    def run(self, first: int, trips: int) -> None:
        """Evaluate a chunk, wait for it and drop it."""
        jax.block_until_ready(self.compiled(*self.arguments(first, trips)))

    def base_score(self) -> float:
        """The loss at the base point, as a candidate of no size scores it."""
        family, params, batch, key, scales = self._fixed
        nowhere = meshes.place(evaluate.Scales(np.zeros_like(scales.values), np.int32(1)), self._mesh)
        scores, _ = self.compiled(family, params, batch, key, nowhere, *self.arguments(0, 1)[len(self._fixed) :])
        return float(np.asarray(scores)[0, 0])

    def blocks(self, ranges: Sequence[Range], *, stop: Callable[[], int] = lambda: 0) -> Iterator[Block]:
        """The scores of these ranges of draws, chunk by chunk, in order.

        The next chunk is dispatched before the last one is read, so the devices never wait for the host.

        Args:
          ranges: ascending, without overlap; the same on every host.
          stop: asked before each chunk; where it gives a word above 0 on any host, all of them end after the
            chunk in flight, whose block carries the word.
        """
        todo = deque(ranges)
        in_flight: deque[_InFlight] = deque()
        trips = wanted = self._fixed_trips or 1
        word, read_at = 0, 0.0
        while (todo and not word) or in_flight:
            if todo and not word:
                in_flight.append(self._dispatch(todo, trips, stop(), wanted))
                if todo and len(in_flight) == 1:
                    continue
            one = in_flight.popleft()
            scores, said = self._host_scores(one), np.asarray(one.said)
            began, read_at = max(one.sent_at, read_at), time.perf_counter()
            word = max(word, int(said[0]))
            if self._fixed_trips is None:
                trips = max(1, int(said[1]))
                rate = one.trips / max(read_at - began, 1e-9)
                wanted = max(1, min(self.capacity, GROWTH * one.trips, round(rate * CHUNK_S)))
            yield Block(one.start, scores, word)

    def _dispatch(self, todo: deque[Range], trips: int, word: int, wanted: int) -> _InFlight:
        """Send the next chunk off and take it from what is to do."""
        start, end = todo.popleft()
        aligned = start - start % self._align  # what is formed together begins where every run begins it
        trips = min(trips, math.ceil((end - aligned) / self.granule))
        stop = min(end, aligned + trips * self.granule)
        if stop < end:
            todo.appendleft((stop, end))
        sent_at = time.perf_counter()
        sent = self.compiled(*self.arguments(aligned, trips, word, wanted if hosts.is_first() else 0))
        return _InFlight(start, stop, aligned, trips, sent_at, *sent)

    def _control(self, word: int, wanted: int) -> Array:
        """What this process says to all of them."""
        split = (meshes.MODEL,) if meshes.MODEL in self._mesh.axis_names else ()
        shape = (self._mesh.shape[meshes.CANDIDATES], self._mesh.shape[meshes.MODEL] if split else 1, 2)
        sharding = NamedSharding(self._mesh, PartitionSpec(meshes.CANDIDATES, *split))
        mine = np.broadcast_to(np.asarray([word, wanted], np.int32), shape)
        return jax.make_array_from_callback(shape, sharding, lambda part: mine[part])

    def _host_scores(self, one: _InFlight) -> Float[np.ndarray, "n sigmas signs"]:
        of_devices = np.asarray(one.scores).reshape(-1, self.capacity * self._unit, one.scores.shape[1])
        draws = of_devices[:, : one.trips * self._unit].reshape(-1, one.scores.shape[1])
        asked = draws[one.start - one.aligned : one.stop - one.aligned, : math.prod(self._shape)]
        return asked.reshape(-1, *self._shape)
