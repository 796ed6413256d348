"""Checkpoints that are written while the run goes on."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

Call = Callable[..., None]


@contextmanager
def one_at_a_time(report: Callable[[str, BaseException], None]) -> Iterator[Call]:
    """Call functions in a thread, one at a time.

    Args:
      report: `report(name, error)` is called in the caller's thread for a call that failed, before
        the next call, or at the end.

    Yields:
      `call(name, fn, *args)`.
    """
    pending: list[tuple[str, Future[object]]] = []

    def wait() -> None:
        while pending:
            name, future = pending[0]
            error = future.exception()
            pending.clear()  # not before: the wait may be interrupted
            if error is not None:
                report(name, error)

    with ThreadPoolExecutor(1, "jaxsgd-checkpoint") as thread:

        def call(name: str, fn: Callable[..., object], *args: object) -> None:
            wait()
            pending.append((name, thread.submit(fn, *args)))

        try:
            yield call
        finally:
            wait()
