"""The built-in schedulers of knobs."""
