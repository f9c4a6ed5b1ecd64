"""The watch over a machine that waits with nothing to do: after a while it restarts, so that the daemon decides again.

A machine that loads the live system for a cast which ends in the meantime would otherwise stay there until somebody
switches it off. At its next boot the daemon sends it to its disk. After a capture there is nothing to wait for.
"""

from __future__ import annotations

from protocol.control.check_in import CheckInAnswer


class IdleWatch:
    """The watch over one run of an agent. Pure: time is an argument."""

    def __init__(self) -> None:
        self._limit_s: float | None = None
        self._idle_since: float | None = None
        self._stays = False
        self._finished = False

    def finish(self) -> None:
        """Restart as soon as nothing is planned: the machine has made the capture for which it booted."""
        self._finished = True

    def stay(self) -> None:
        """Never restart: the disk may be incomplete, and the console shows the reason."""
        self._stays = True

    def note(self, answer: CheckInAnswer, now: float) -> float | None:
        """Note an answer to a check-in without a cast.

        Args:
            answer: the answer; only one that denies a planned cast counts as idle time.
            now: monotonic seconds.

        Returns:
            The seconds of waiting after which the machine should restart; None if it should wait on.
        """
        if answer.idle_restart_s is not None:
            self._limit_s = answer.idle_restart_s
        if answer.cast_planned is not False or answer.assignment is not None:
            self._idle_since = None
            return None
        if self._idle_since is None:
            self._idle_since = now
        idle_s = now - self._idle_since
        if self._limit_s is None or self._stays:
            return None
        return idle_s if self._finished or idle_s >= self._limit_s else None
