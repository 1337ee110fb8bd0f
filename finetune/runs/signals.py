"""Ctrl-C and SIGTERM: while training they take effect at the next step, after a checkpoint; else at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from finetune import ranks
from finetune.checkpoint.run_folder import RunFolder
from finetune.errors import Interrupted, ResourceError


@dataclass(slots=True)
class Stop:
    """Whether a signal asked the run to stop; a second one stops it at once.

    `folder` is what can be resumed, once it is laid out; `is_training` is whether there is something to save.
    """

    signal: int = 0
    folder: RunFolder | None = None
    is_training: bool = False

    def begun(self, folder: RunFolder) -> None:
        """Note the folder to resume; for a run in a comparison that is the comparison's."""
        self.folder = self.folder or folder

    def raise_if_asked(self, save: Callable[[], None] | None = None) -> None:
        """Write a checkpoint and leave, if a signal came; with several processes the first does so, and ends all.

        Raises:
            Interrupted: one came; the hint says how to go on.
        """
        if self.signal and ranks.is_first():
            if save:
                save()
            raise self.error()

    @contextmanager
    def training(self) -> Iterator[None]:
        """Defer signals inside the block until `raise_if_asked`.

        Raises:
            Interrupted: a signal came.
        """
        self.is_training = True
        try:
            yield
        except (ResourceError, RuntimeError) as error:
            # Others that got the same signal have died of it: workers, or the first process, which saves and leaves.
            is_lost = isinstance(error, ranks.LostProcessError) and ranks.is_first()
            if self.signal and isinstance(error.__cause__ or error, RuntimeError) and not is_lost:
                raise self.error() from error
            raise
        finally:
            self.is_training = False
        self.raise_if_asked()

    def error(self) -> Interrupted:
        """Return the error of the signal that came."""
        name = signal.Signals(self.signal).name
        if self.folder is None:
            text, way = f"stopped by {name} before anything was trained", "Give the same command to start again."
        else:
            text = f"stopped by {name}; what was done is kept"
            way = f"Resume with: {self.folder.resuming}"
        return Interrupted(text, hint=way, exit_code=128 + self.signal)


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Catch SIGINT and SIGTERM inside the block; outside the main thread there is nothing to catch.

    Raises:
        Interrupted: one came when there was nothing to save first.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, _: FrameType | None) -> None:
        is_second, stop.signal = bool(stop.signal), stop.signal or number
        if is_second or not stop.is_training:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    except KeyboardInterrupt as error:
        if not stop.signal:
            raise
        raise stop.error() from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
