"""The loop: trainer, batch sources, student, knobs, checkpoints."""
