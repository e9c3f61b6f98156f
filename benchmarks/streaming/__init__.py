"""The parts of benchmarks/streaming.py."""
