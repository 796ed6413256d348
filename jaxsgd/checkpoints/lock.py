"""A lock on a folder of checkpoints: two runs in one folder would destroy each other's saves."""

import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Hold a folder of checkpoints, which is created, for one run alone.

    The system lets go of the lock when the process ends, however it ends.

    Raises:
      BlockingIOError: another run, of this or another process, holds it.
    """
    try:
        import filelock
    except ImportError as error:
        message = "checkpoints of fit need filelock: pip install 'jaxsgd[checkpoints]'"
        raise ImportError(message) from error

    folder.mkdir(parents=True, exist_ok=True)
    owner, own_id = folder / ".owner", os.getpid()
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise BlockingIOError(
            f"{folder} is in use by {_holder(owner)}, expected one run at a time in a folder: wait "
            "for its end, or give this run another folder"
        ) from None
    try:
        if owner.exists():
            message = f"{folder} was left by {_holder(owner)}, which was killed; going on from it"
            warnings.warn(message, stacklevel=3)
        with suppress(OSError):  # a full disk does not end a run
            owner.write_text(f"process {own_id} on {platform.node()}")
        yield
    finally:
        if os.getpid() == own_id:  # not in a fork of this process
            with suppress(OSError):  # the folder may be gone
                owner.unlink()
            lock.release()


def _holder(owner: Path) -> str:
    """The process that holds a folder, if that can be read."""
    with suppress(OSError):
        return owner.read_text() or "another process"
    return "another process"
