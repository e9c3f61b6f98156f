"""Rows: formats, chat rendering, loss masks, split, quarantine."""
