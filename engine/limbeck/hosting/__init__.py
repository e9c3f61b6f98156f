"""Runs of a server: their processes, queue, index, history and files."""
