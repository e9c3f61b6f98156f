"""Figures of a finished run, as HTML and JSON."""
