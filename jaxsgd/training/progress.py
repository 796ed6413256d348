"""The progress bar of a fit, and the signals that end it."""

import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")


class Bar:
    """tqdm's bar over epochs, or nothing."""

    def __init__(self, show: bool, epochs: int, rows: int, done: int = 0):
        self.bar, self.rows = _bar(show, total=epochs, initial=done, unit="epoch"), rows

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def say(self, line: str) -> None:
        """A line above the bar."""
        if self.bar is not None:
            self.bar.write(line, file=sys.stderr)

    def show(self, history: dict[str, np.ndarray]) -> None:
        """The last epoch of a history, if it is new."""
        done = len(history["epoch"])
        if self.bar is not None and done > self.bar.n:
            shown = {k: f"{v[-1]:.4g}" for k, v in history.items() if "loss" in k}
            speed = f"{self.rows / history['seconds'][-1]:.3g}"
            self.bar.set_postfix(shown | {"rows/s": speed}, refresh=False)
            self.bar.update(done - self.bar.n)


def counted(items: list[T], show: bool, unit: str) -> Iterable[T]:
    """The items, with a bar over them."""
    bar = _bar(show, iterable=items, unit=unit)
    return items if bar is None else bar


def _bar(show: bool, **options: Any) -> Any:
    """tqdm's bar, or None with a warning where it is missing."""
    if not show:
        return None
    try:
        from tqdm.auto import tqdm
    except ImportError:
        message = "the progress bar needs tqdm: pip install 'jaxsgd[progress]', or progress=False"
        warnings.warn(message, stacklevel=4)
        return None
    return tqdm(**options)


class Signals:
    """What signals have asked of a fit: Ctrl-C to end after the epoch, SIGTERM to save and end."""

    def __init__(self, is_saved: bool) -> None:
        self._is_saved = is_saved
        self.interrupted, self.terminated = threading.Event(), threading.Event()
        self._calls = 0

    def is_preempted(self) -> bool:
        """Whether to save and end now; asked after each call of the compiled program.

        All processes act at the same call, because JAX's runtime passes the signal on.
        """
        self._calls += 1
        if not self._is_saved or jax.process_count() == 1:
            return self.terminated.is_set()
        return multihost_utils.reached_preemption_sync_point(self._calls)


@contextmanager
def received(is_saved: bool) -> Iterator[Signals]:
    """Handle the signals of a fit, so that none ends it within an epoch, whose state is donated.

    A second Ctrl-C stops at once. SIGTERM is not handled without a checkpoint. With several
    processes Ctrl-C stops at once, for they cannot agree on it, and JAX handles SIGTERM.
    """
    signals = Signals(is_saved)
    # Python handles signals only there
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or jax.process_count() > 1:
        yield signals
        return

    def interrupt(*_: object) -> None:
        signals.interrupted.set()
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    handlers: dict[int, Any] = {signal.SIGINT: interrupt}
    if is_saved:
        handlers[signal.SIGTERM] = lambda *_: signals.terminated.set()
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
