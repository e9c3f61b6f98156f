"""What vLLM prints: how far a start is, and the words that say why it failed."""

from __future__ import annotations

import re
from collections.abc import Iterable

STARTING = "starting the engine"
PHASES = (("Starting to load model", "loading the weights"), ("Loading weights took", "warming up"))
SHOWN = "VLLM_LOGGING_LEVEL"  # the environment's variable that lets all of it be seen

_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_PREFIX = re.compile(r"^(\([^)]*\)\s*)?((ERROR|INFO|WARNING|CRITICAL)\s[\d-]+ [\d:.]+ \[[^\]]*\] ?)?")
_RAISED = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?([A-Z]\w*(?:Error|Exception|Interrupt)|Exception): (.+)$")
_SAYS_NOTHING = re.compile(
    r"root cause|WorkerProc initialization failed|Engine core initialization failed|cancelled|EngineDeadError", re.I
)
_MEMORY = re.compile(
    r"out of memory|OutOfMemory|MemoryError|cannot allocate|free memory|available memory|want of memory", re.I
)


def phase_of(line: str) -> str | None:
    """The phase of a start that begins with this line of the log."""
    return next((phase for mark, phase in PHASES if mark in line), None)


def reason_of(lines: Iterable[str], said: str = "") -> str:
    """Why an engine failed: the last exception in its log that says something, else `said`, what the engine raised.

    The root of a failure is printed by the process that has it; those above only say that there was one.
    """
    found = ""
    for line in lines:
        raised = _RAISED.match(_PREFIX.sub("", _COLOUR.sub("", line).strip()).strip())
        if raised and not _SAYS_NOTHING.search(raised[2]):
            found = raised[2]
    if found and (not said or _SAYS_NOTHING.search(said)):
        return _tidy(found)
    return _tidy(said) or "it ended without a word, as a process does that the system kills for want of memory"


def lacks_memory(words: str) -> bool:
    """Whether these words are about memory."""
    return bool(_MEMORY.search(words))


def _tidy(words: str) -> str:
    """One line, without pydantic's frame around what was raised, cut where long."""
    kept = [line.strip() for line in words.strip().splitlines()]
    kept = [line for line in kept if line and not line.startswith("For further information")]
    if len(kept) > 1 and re.match(r"^(\w+: )?\d+ validation errors? for", kept[0]):
        kept = kept[1:]
    text = re.sub(r"^(\w*(Error|Exception): |Value error, )+", "", " ".join(kept))
    text = re.sub(r" ?\[type=\w+, input_value=.*?input_type=\w+\]", "", text)
    return text if len(text) <= 500 else text[:499] + "…"
