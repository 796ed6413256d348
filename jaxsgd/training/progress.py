"""The progress bar of a fit, and what Ctrl-C does."""

import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

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


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets, so that no epoch's donated state is lost half way."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # signals reach the main thread alone
        return

    def handler(*_: object) -> None:
        event.set()
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)
