"""A sampler of batches with each class in proportion."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int, Shaped

from jaxsgd.core import validation
from jaxsgd.core.part import field, part, set_fields, static
from jaxsgd.core.records import Batch
from jaxsgd.core.trees import gather
from jaxsgd.random.bits import randint_below, random_words
from jaxsgd.random.permutation import GOLDEN, mix, networks, permute_each, quotient
from jaxsgd.samplers.base import CounterSampler

MOST_STEPS = 2**26  # per epoch; the products in `_first_place` would overflow with more
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


Labels = Shaped[Array, " n"] | Shaped[np.ndarray, " n"] | Sequence[int]


@part
class Stratified(CounterSampler):
    """Batches with each class in proportion, shuffled within each class (stratified sampling).

    `weight = n_c / (n v)` for each of the v rows of class c in a batch, of n_c in the data.

    An epoch has `T = ceil(n / B)` steps and n places in the order of the classes: m_c = n_c for
    class c, or its share of n by `proportions`, at least one. A step takes every T-th place, from a
    first place that differs from step to step (systematic sampling). Its number of rows of a class
    therefore differs by at most one from that of any other step, and a class with fewer places than
    steps is spread evenly over the epoch, from a random phase. In proportion, an epoch visits each
    row once; otherwise a class is passed through as often as its places require.

    Where m_c < T some steps have no row of class c, and its rows weigh `n_c T / (n m_c)`. So each
    step is unbiased for the mean over the data, whatever the proportions. To weigh the classes in
    the objective, give the solver a `sample_weight`.

    Args:
      labels: int[n], the class of each row. The number of rows of each class is static.
      batch_size: B, the number of rows of a batch, 1 to n.
      proportions: the share of each class in a batch, in the order of the sorted labels, above 0;
        scaled to sum to 1. None takes the shares of the data.

    Raises:
      TypeError: labels that are not integers, or that are traced.
      ValueError: a batch size below 1 or above the number of rows, more than 2**26 steps per epoch,
        or proportions that are not one number above 0 per class.

    >>> labels = jnp.array([0, 0, 1, 0, 0, 1, 0, 0])
    >>> sampler = jaxsgd.Stratified(labels, 4)
    >>> [labels[sampler.batch(jax.random.key(0), t).index].tolist() for t in range(2)]
    [[0, 0, 0, 1], [0, 0, 0, 1]]

    References: Cochran, "Sampling techniques" (1977), chapters 5 and 8.
    """

    labels: Labels
    batch_size: int = static()
    proportions: Sequence[float] | np.ndarray | None = static(default=None)
    order: Int[Array, " n"] = field(default=None, init=False, repr=False)  # rows, class after class
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

    def for_shard(self, begin: int, end: int, shards: int) -> "Stratified":
        """The sampler of some rows, by their classes, with a share of the batch."""
        share = self.share_of(shards)
        return Stratified(self.labels[begin:end], share, self.proportions)

    @property
    def size(self) -> int:
        """n, the number of rows."""
        return sum(self.counts)

    @property
    def steps_per_epoch(self) -> int:
        """T, the number of batches of an epoch."""
        return -(-self.size // self.batch_size)

    def batch(self, key: jax.Array, step: Int[Array, ""] | int) -> Batch:
        """Batch `step` (int32[]) of the run with this key, its rows in the order of the classes."""
        n, steps, key = self.size, self.steps_per_epoch, validation.key(key)
        counts = np.array(self.counts)
        places = counts if self.proportions is None else _places(tuple(self.proportions), n)
        begins = np.cumsum(places) - places

        step, position = validation.step(step), np.arange(self.batch_size, dtype=np.int32)
        epoch, step_of_epoch = (
            jax.lax.div(step, jnp.int32(steps)),
            jax.lax.rem(step, jnp.int32(steps)),
        )
        first = _first_place(key, epoch, step_of_epoch, steps)
        place = first + position * steps
        valid = position <= (n - 1 - first) // steps
        of_class = _class_lookup(begins, place, steps)

        place = jnp.minimum(place - of_class(begins), of_class(places - 1))  # within the class
        row = self._rows(key, epoch, place, places, of_class)

        def before(end: np.ndarray) -> jax.Array:
            """How many places of this step come before the first or last place of a class."""
            whole, rest = np.divmod(end, steps)
            return of_class(whole) + (of_class(rest) > first)

        taken = (before(begins + places) - before(begins)).astype(float)
        taken = jnp.where(of_class(places >= steps), taken, of_class(places / steps))
        weight = jnp.where(valid, of_class(counts) / taken / n, 0)
        return Batch(gather(self.order, jnp.where(valid, row, row[0])), weight)

    def _rows(
        self,
        key: jax.Array,
        epoch: jax.Array,
        place: jax.Array,
        places: np.ndarray,
        of_class: Callable[[np.ndarray], Array],
    ) -> jax.Array:
        """The rows (int32[B]), numbered class after class, at places of the classes' shuffles."""
        counts = np.array(self.counts)
        all_networks = networks(counts)
        size, a, b = (of_class(np.asarray(x)) for x in all_networks[:3])
        # a salt per class, because two classes of the same size must not have the same shuffle
        salt = of_class(mix(np.arange(len(counts), dtype=np.uint32) * GOLDEN))
        if self.proportions is not None:  # the class may have been passed through before
            divide = quotient if (places // counts).max() < 2**20 else jax.lax.div
            place = place.astype(jnp.uint32)
            passes = divide(place, size)
            place -= passes * size
            salt += passes * GOLDEN
        own_networks = all_networks._replace(size=size, a=a, b=b)
        begins = np.cumsum(counts) - counts
        return of_class(begins) + permute_each(key, epoch, place, own_networks, salt)


def _class_lookup(
    begins: np.ndarray, place: jax.Array, steps: int
) -> Callable[[np.ndarray], Array]:
    """A function that looks up, in a table by class, the entry for the class of each place.

    Places are `position * steps + first`, first < steps, so that a position in the batch can only
    have a few classes. Up to four of them are selected among constants, which takes neither a
    gather nor a search.
    """
    low = np.arange(len(place)) * steps
    least = np.searchsorted(begins, low, side="right") - 1
    most = np.searchsorted(begins, low + steps - 1, side="right") - 1
    count = 1 + int((most - least).max())
    if count > 4:
        method = "compare_all" if len(begins) <= 64 else "scan_unrolled"
        kind = jnp.searchsorted(jnp.asarray(begins), place, side="right", method=method) - 1
        return lambda table: jnp.asarray(_narrow(table))[kind]
    classes = [np.minimum(least + i, most) for i in range(count)]
    is_beyond = [place >= begins[kind].astype(np.int32) for kind in classes[1:]]

    def of_class(table: np.ndarray) -> Array:
        table = _narrow(table)
        value = jnp.asarray(table[classes[0]])
        for is_in, which in zip(is_beyond, classes[1:], strict=True):
            value = jnp.where(is_in, table[which], value)
        return value

    return of_class


def _first_place(
    key: jax.Array, epoch: jax.Array, step_of_epoch: jax.Array, steps: int
) -> jax.Array:
    """The first place that a step takes: `(step_of_epoch * stride + phase) mod steps`.

    The product wraps modulo 2**32. So does `quotient * steps`, whose quotient is computed in
    floats and off by a few at most; the difference is exact.
    """
    stride = _stride(steps)
    words = random_words(key, -1 - epoch, 1)  # a number that no epoch's shuffle is hashed from
    phase = randint_below(words, steps)[0]
    quotient = (step_of_epoch.astype(jnp.float32) * np.float32(stride / steps)).astype(jnp.int32)
    return jnp.remainder(step_of_epoch * stride + phase - quotient * steps, steps)


@lru_cache
def _stride(steps: int) -> int:
    """A number coprime to `steps`, near `steps` times the golden ratio.

    Of the candidates, the one whose ratio to `steps` is worst approximated by fractions: the
    largest term of its continued fraction is least. Steps that take adjacent places, those of a
    rare class, are then far apart.
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
    """How many of the n places of an epoch each class has (int32[K]), at least one each."""
    exact = np.array(proportions) / sum(proportions) * n
    places = np.maximum(np.floor(exact), 1).astype(np.int32)
    while places.sum() > n:  # some classes had less than one place
        places[places.argmax()] -= 1
    places[np.argsort(places - exact, kind="stable")[: n - places.sum()]] += 1
    return places


def _narrow(table: np.ndarray) -> np.ndarray:
    return table.astype(np.int32) if table.dtype == np.int64 else table


def _checked_labels(labels: Labels) -> np.ndarray:
    if isinstance(labels, Tracer):
        raise TypeError(
            "Stratified's labels are traced, expected concrete numbers: the number of rows of each "
            "class is static; create the sampler outside of jit and vmap"
        )
    host = np.asarray(labels)
    if host.ndim != 1 or host.dtype.kind not in "iub" or len(host) == 0:
        raise TypeError(
            f"Stratified's labels are an array of {host.dtype} of shape {host.shape}, expected one "
            "integer per row; np.unique(labels, return_inverse=True)[1] converts other labels"
        )
    return host


def _checked_proportions(
    proportions: Sequence[float] | np.ndarray | None, classes: int
) -> tuple[float, ...] | None:
    if proportions is None:
        return None
    name = "Stratified's proportions"
    is_sequence = isinstance(proportions, tuple | list | np.ndarray | jax.Array)
    given = tuple(map(float, proportions)) if is_sequence else ()
    if len(given) != classes or not all(0 < p < math.inf for p in given):
        raise ValueError(
            f"{name} are {proportions}, expected {classes} numbers above 0, one per class"
        )
    return given
