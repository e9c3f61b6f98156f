"""How much a server's runs may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RunLimits:
    """What runs may take of a server, all of them and one client's. Times in seconds.

    `max_runs` run processes at once; `queue` runs that wait; `per_client` runs of one owner that wait or work;
    `unfinished` runs in all that have not ended, those that rest too. `keep_runs`, `keep_gib` (0: any size): ended runs
    whose folders are kept. `patience`: what a process has to stop where it can go on, before it is killed.
    `check_seconds`: what the look at a recipe may take. `poll`: between two looks at what changes on its own.
    """

    max_runs: int = 1
    queue: int = 16
    per_client: int = 8
    unfinished: int = 256
    keep_runs: int = 100
    keep_gib: float = 0.0
    patience: float = 300.0
    check_seconds: float = 1800.0
    poll: float = 0.5
