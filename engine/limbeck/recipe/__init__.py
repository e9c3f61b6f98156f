"""Recipes: schema, loading, errors with their place."""
