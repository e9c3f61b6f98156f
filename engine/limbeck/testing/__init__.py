"""Conformance classes and test doubles, for plugin authors and for Limbeck's own tests."""
