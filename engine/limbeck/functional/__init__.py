"""The losses as a library: the head and its closed-form gradient."""
