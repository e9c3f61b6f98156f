"""Run folders, stages, the event log."""
