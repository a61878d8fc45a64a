"""What a stage waits for, how long already, and when that has been too long."""

import time

from emopfx.errors import RunError
from emopfx.kubernetes.pods import Account

# How long pods may stay in states that usually only somebody can mend.
STUCK_SECONDS = 60.0


class Waiting:
    """Keeps the reasons for which one stage does not go on.

    Args:
        patience: Seconds after which a stage has waited too long.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._since: float | None = None
        self._stuck_since: float | None = None
        self._stuck_reason = ""
        self._told: set[str] = set()

    def is_new(self, account: Account) -> bool:
        """Whether a reason was not given before."""
        # What a log says may differ in details each time.
        told = account.reason.partition("\n")[0]
        new = told not in self._told
        self._told.add(told)
        return new

    def go_on(self, account: Account, *, forever: bool) -> None:
        """Wait on for a reason.

        Args:
            account: The reason.
            forever: Whether it may last longer than `patience`, unless somebody has to mend it.

        Raises:
            RunError: If that will not change by itself, or has lasted too long.
        """
        moment = time.monotonic()
        self._since = self._since or moment
        # What crashes again and again is being started in between.
        if not account.stuck and account.crashed is None:
            self._stuck_since, self._stuck_reason = None, ""
        elif account.stuck or self._stuck_since:
            self._stuck_since = self._stuck_since or moment
            # A pod that can't have its image says so by turns at length and in short.
            if account.stuck:
                self._stuck_reason = max(self._stuck_reason, account.reason, key=len)
            if moment - self._stuck_since > STUCK_SECONDS:
                raise RunError(self._stuck_reason)
        if not forever and moment - self._since > self._patience:
            raise RunError(f"not ready after {self._patience:.0f} s: {account.reason}")
