"""The built-in data generators."""
