"""Run folders, stages, the event log, and the pipeline from a recipe to its report. Imports nothing heavy."""

from limbeck.runs.events import EventLog, read_events
from limbeck.runs.findings import Preflight
from limbeck.runs.folder import RunFolder, find_recipe
from limbeck.runs.pipeline import run_recipe
from limbeck.runs.preflight import check
from limbeck.runs.stage import Interrupted
from limbeck.runs.stopping import StopSignal

__all__ = [
    "EventLog",
    "Interrupted",
    "Preflight",
    "RunFolder",
    "StopSignal",
    "check",
    "find_recipe",
    "read_events",
    "run_recipe",
]
