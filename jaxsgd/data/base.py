"""The contract of rows: what a run needs from its data, wherever they are stored.

Public functions take a user's own pytree of arrays. Inside, `as_rows` makes `Rows` of it, which
read shapes and dtypes only; whatever depends on where rows are stored is a method of `Rows`.

    ArrayRows      arrays on a device                 an ordinary pytree of arrays
    BatchRows      one batch that is gathered already a step on rows from another loader
    StreamedRows   a source on the host               `HostRows`, or a custom source
    MeshRows       arrays spread over many devices    the gradient is a sum of theirs

`Rows` are never a part of a state, a result or a record.
"""

import abc
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree, Shaped

from jaxsgd.core.part import default_property
from jaxsgd.core.records import Batch, State
from jaxsgd.core.trees import as_arguments, gather
from jaxsgd.samplers.base import Sampler

T = TypeVar("T")

PartNumber = Int[Array, ""] | int | None  # None if there is only one part
# `of_part(number, data, batch, params, state)` computes something of one part of a batch, whose
# rows are `data`: it returns a term of the sum, and the state after the part.
OfPart = Callable[[PartNumber, PyTree, Batch, PyTree, PyTree], tuple[PyTree, PyTree]]
# `reduction(of_part, params, state)` calls `of_part` once for each part of a batch. It returns the
# sum of the terms, and the state after one of the parts.
Reduction = Callable[[OfPart, PyTree, PyTree], tuple[PyTree, PyTree]]


class Rows(abc.ABC):
    """The rows of a run, wherever they are stored.

    Custom rows that are computed on the device are a `part` with `shapes` and `take`; those that
    are read on the host subclass `StreamedRows`. The other methods have defaults.

    Attributes with defaults:
      is_streamed: the rows stay on the host, and a host loop brings them to the device. False.
      is_resident: all rows can be read by any operation of a compiled program. False.
      reproducible: sums over rows have the same bits on any number of devices. False.
    """

    is_streamed: bool = False
    is_resident: bool = False
    reproducible: bool = False

    @default_property
    def shapes(self) -> PyTree[jax.ShapeDtypeStruct]:
        """The shape and dtype of each array, all rows included: an attribute or a property."""
        raise TypeError(
            f"{type(self).__name__} has no attribute `shapes`, expected a pytree of "
            "jax.ShapeDtypeStruct((n, ...), dtype), n the number of rows"
        )

    @abc.abstractmethod
    def take(self, index: Int[Array, " B"]) -> PyTree:
        """The rows at `index`: arrays of shape (B, ...)."""

    @default_property
    def size(self) -> int:
        """n, the number of rows."""
        return int(jax.tree.leaves(self.shapes)[0].shape[0])

    def some(self, count: int) -> PyTree:
        """At most `count` rows at a fixed stride, for comparing data."""
        count = max(1, min(count, self.size))
        return self.take(jnp.asarray(np.linspace(0, self.size - 1, count).astype(np.int32)))

    def take_some(self, index: Int[Array, " B"], positions: Int[Array, " B"]) -> PyTree:
        """The rows of the batch `index` at some positions in it: those of `index[positions]`."""
        return self.take(gather(index, positions))

    @property
    def batch_arrays(self) -> PyTree:
        """The arrays that are cut when a batch is cut in parts; None except for `BatchRows`."""
        return None

    def with_batch_arrays(self, arrays: PyTree) -> PyTree:
        """The data of a part of a batch, whose `batch_arrays` are these."""
        return self

    def reduction(self, batch: Batch, is_keyed: bool) -> Reduction | None:
        """How the parts of a gradient are computed and summed; None for a single part."""
        return None

    def sampler(self, sampler: Sampler) -> Sampler:
        """The sampler of a run on these rows, its size filled in."""
        return sampler.for_size(self.size)

    def as_batch(self) -> PyTree:
        """The data of a step whose batch is all rows in order: not gathered where it can be."""
        return self

    def placed(self, tree: PyTree) -> PyTree:
        """The tree on the devices of the rows, where those were chosen explicitly."""
        return tree

    def as_arguments(self) -> PyTree:
        """The data as an argument of a compiled program: arrays on a device."""
        return self if self.is_streamed else as_arguments(self)

    def traced(self, fn: Callable[..., T]) -> Callable[..., T]:
        """A function of pytrees of arrays as it is traced in a program that reads these rows."""
        return fn

    def check_values(self, name: str = "data") -> None:
        """Refuse values that a device cannot hold. Reads all rows on the host."""
        return

    def check_precision(self, name: str = "data") -> None:
        """Warn of values that a device cannot tell apart. Reads some rows on the host."""
        return

    def total(
        self,
        add: Callable[..., PyTree],
        sample_weight: Shaped[Array, " n"] | None,
        batch_size: int,
        *args: PyTree,
    ) -> PyTree:
        """The sum over all rows of `add(rows, weight, sums, *args)`.

        `add` adds the terms of some rows, in chunks of `batch_size`, to `sums`, or, where that is
        None, begins with them; `weight` are their sample weights, or None.
        """
        return add(self, sample_weight, None, *args)

    def feeds(
        self, sampler: Sampler, state: State, lengths: Iterable[int], total: int | None
    ) -> Generator[tuple[PyTree, int, int], None, None]:
        """Data for the next steps of a host loop that takes `lengths` steps, `total` in all.

        Yields (data, position of the first batch in them, number of steps). The numbers of steps
        add up to each length in turn. By default each length is one yield, with all rows.
        """
        data = self.as_arguments()
        yield from ((data, 0, length) for length in lengths)
