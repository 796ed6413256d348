"""Batches with each class in proportion."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxsgd.core import validation
from jaxsgd.core.part import field, part, set_fields, static
from jaxsgd.core.records import Batch
from jaxsgd.core.trees import gather
from jaxsgd.random.bits import below, words
from jaxsgd.random.permutation import GOLDEN, mix, permute_each, quotient, shapes
from jaxsgd.samplers.base import CounterSampler

MOST_STEPS = 2**26  # of an epoch: more would overflow the products of `_first_place`
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


@part
class Stratified(CounterSampler):
    """Each class in every batch in proportion, shuffled on its own (stratified sampling).

    An epoch has `T = ceil(n / B)` steps and n places, class after class: n_c for class c, or its
    part of n by `proportions`, one at least. A step takes every T-th place from one of its own on
    (systematic sampling), so it has as many rows of each class as any other step, give or take one,
    and a class of fewer rows than steps is spread over the epoch, from a random phase. In
    proportion an epoch visits each row once; else a class begins anew as often as it must.

    With m_c places for class c, the v rows of it in a batch weigh `n_c / (n v)` each, or, where
    m_c < T and some steps have none, `n_c T / (n m_c)`. So each step is unbiased for the mean over
    the data, whatever the proportions. For another objective give the solver a `sample_weight`.

    Args:
      labels: int[n]: the class of each row. Its counts are part of the program.
      batch_size: B, the number of slots of a batch, 1 to n.
      proportions: None, or for each class, in the order of the sorted labels, its part of a batch,
        above 0; scaled to sum to 1.

    Raises:
      TypeError: labels that are no integers, or traced.
      ValueError: a batch size below 1 or above the number of rows, more than 2**26 steps an epoch,
        or proportions that are not one for each class, above 0.

    Cochran, "Sampling techniques" (1977), chapters 5 and 8.

    >>> labels = jnp.array([0, 0, 1, 0, 0, 1, 0, 0])
    >>> sampler = jaxsgd.Stratified(labels, 4)
    >>> [labels[sampler.batch(jax.random.key(0), t).index].tolist() for t in range(2)]
    [[0, 0, 0, 1], [0, 0, 0, 1]]
    """

    labels: Any
    batch_size: int = static()
    proportions: tuple[float, ...] | None = static(default=None)
    order: Any = field(default=None, init=False, repr=False)  # rows, class after class
    counts: tuple[int, ...] = static(default=(), init=False)  # rows of each class

    def __post_init__(self) -> None:
        labels = _checked_labels(self.labels)
        _, kind, counts = np.unique(labels, return_inverse=True, return_counts=True)
        n, name = len(labels), "Stratified's batch_size"
        size = validation.integer(self.batch_size, f"{name} of data with {n} rows", 1, n)
        if -(-n // size) > MOST_STEPS:
            raise ValueError(f"{name} is {size}, expected at most 2**26 steps an epoch of {n} rows")
        order = np.argsort(kind, kind="stable")
        set_fields(
            self,
            batch_size=size,
            labels=jnp.asarray(kind, jnp.int32),  # numbered by their order
            proportions=_checked_proportions(self.proportions, len(counts)),
            order=jnp.asarray(order, jnp.int32),
            counts=tuple(counts.tolist()),
        )

    @property
    def size(self) -> int:
        """n, the number of rows."""
        return sum(self.counts)

    @property
    def steps_per_epoch(self) -> int:
        """T, the number of batches of an epoch."""
        return -(-self.size // self.batch_size)

    def batch(self, key: jax.Array, step: Int[Array, ""] | int) -> Batch:
        """Batch `step` (int32[]) of the run with this key: its rows class after class."""
        n, steps, key = self.size, self.steps_per_epoch, validation.key(key)
        counts = np.array(self.counts)
        places = counts if self.proportions is None else _places(self.proportions, n)
        begins, rows = np.cumsum(places) - places, np.cumsum(counts) - counts
        size, a, b, rounds = shapes(counts)
        salt = mix(np.arange(len(counts), dtype=np.uint32) * GOLDEN)  # for a shuffle of its own

        step, lane = jnp.asarray(step, jnp.int32), np.arange(self.batch_size, dtype=np.int32)
        epoch, turn = jax.lax.div(step, jnp.int32(steps)), jax.lax.rem(step, jnp.int32(steps))
        first = _first_place(key, epoch, turn, steps)
        last = (n - 1 - first) // steps
        place = first + lane * steps
        of_class = _by_class(begins, place, steps)
        position = jnp.minimum(place - of_class(begins), of_class(places - 1))
        salt = of_class(salt)
        if self.proportions is not None:  # the class may have been passed through before
            divide = quotient if (places // counts).max() < 2**20 else jax.lax.div
            position, rows_of = position.astype(jnp.uint32), of_class(size)
            passes = divide(position, rows_of)
            position -= passes * rows_of
            salt += passes * GOLDEN

        shape = (*(of_class(x) for x in (size, a, b)), rounds)
        row = of_class(rows) + permute_each(key, epoch, position, salt, shape)

        def before(place: np.ndarray) -> jax.Array:
            """How many of this step's places are before the first or last one of a class."""
            whole, rest = np.divmod(place, steps)
            return of_class(whole) + (of_class(rest) > first)

        taken = (before(begins + places) - before(begins)).astype(float)
        taken = jnp.where(of_class(places >= steps), taken, of_class(places / steps))
        weight = jnp.where(lane <= last, of_class(counts) / taken / n, 0)
        row = jnp.where(lane <= last, row, row[0])
        return Batch(gather(self.order, row), weight)


def _by_class(begins: np.ndarray, place: jax.Array, steps: int) -> Callable[[Any], jax.Array]:
    """What looks up the entry of each place's class in a table; places are `lane * steps + first`.

    Where few classes share a lane it selects among constants: no look into memory, no search.
    """
    low = np.arange(len(place)) * steps
    least = np.searchsorted(begins, low, side="right") - 1
    most = np.searchsorted(begins, low + steps - 1, side="right") - 1
    classes = [np.minimum(least + i, most) for i in range(1 + int((most - least).max()))]
    is_beyond = [place >= begins[kind].astype(np.int32) for kind in classes[1:]]
    if len(classes) > 4:
        method = "compare_all" if len(begins) <= 64 else "scan_unrolled"
        kind = jnp.searchsorted(jnp.asarray(begins), place, side="right", method=method) - 1

    def of_class(table: Any) -> jax.Array:
        table = table.astype(np.int32) if table.dtype == np.int64 else table
        if len(classes) > 4:
            return jnp.asarray(table)[kind]
        value = jnp.asarray(table[classes[0]])
        for is_in, which in zip(is_beyond, classes[1:], strict=True):
            value = jnp.where(is_in, table[which], value)
        return value

    return of_class


def _first_place(key: jax.Array, epoch: jax.Array, turn: jax.Array, steps: int) -> jax.Array:
    """A step's first place: `(turn * stride + phase) mod steps`.

    The product is taken modulo 2**32, and the quotient from floats, off by a few at most.
    """
    stride = _stride(steps)
    phase = below(words(key, -1 - epoch, 1), steps)[0]  # of a number that no shuffle has
    quotient = (turn.astype(jnp.float32) * np.float32(stride / steps)).astype(jnp.int32)
    return jnp.remainder(turn * stride + phase - quotient * steps, steps)


@lru_cache
def _stride(steps: int) -> int:
    """A number without a common factor, near the golden ratio of the steps.

    Of the candidates the one whose ratio is worst approximated by fractions (its continued fraction
    has small terms), so that steps which take neighbouring places, a small class, lie far apart.
    """

    def largest_term(stride: int) -> int:
        terms, rest = [], (steps, stride)
        while rest[1]:
            terms.append(rest[0] // rest[1])
            rest = rest[1], rest[0] % rest[1]
        return max(terms)

    near = round(steps * GOLDEN_RATIO)
    candidates = range(max(1, near - 32), min(steps, near + 33)) or range(1, 2)
    coprime = [stride for stride in candidates if math.gcd(stride, steps) == 1]
    return min(coprime, key=lambda stride: (largest_term(stride), abs(stride - near)))


@lru_cache
def _places(proportions: tuple[float, ...], n: int) -> np.ndarray:
    """The places (int32[K]) of each class in an epoch, n in all and at least one each."""
    exact = np.array(proportions) / sum(proportions) * n
    places = np.maximum(np.floor(exact), 1).astype(np.int32)
    while places.sum() > n:  # classes of less than one place
        places[places.argmax()] -= 1
    places[np.argsort(places - exact, kind="stable")[: n - places.sum()]] += 1
    return places


def _checked_labels(labels: Any) -> np.ndarray:
    if isinstance(labels, jax.core.Tracer):
        raise TypeError(
            "Stratified's labels are traced, expected numbers: their counts shape the program"
        )
    host = np.asarray(labels)
    if host.ndim != 1 or host.dtype.kind not in "iub" or len(host) == 0:
        raise TypeError(
            f"Stratified's labels are an array of {host.dtype} of shape {host.shape}, expected "
            "integers, one a row: np.unique(labels, return_inverse=True)[1] makes them of others"
        )
    return host


def _checked_proportions(proportions: Any, classes: int) -> tuple[float, ...] | None:
    if proportions is None:
        return None
    name = "Stratified's proportions"
    is_sequence = isinstance(proportions, tuple | list | np.ndarray | jax.Array)
    given = tuple(map(float, proportions)) if is_sequence else ()
    if len(given) != classes or not all(0 < p < math.inf for p in given):
        raise ValueError(
            f"{name} are {proportions}, expected {classes} numbers above 0, one a class"
        )
    return given
