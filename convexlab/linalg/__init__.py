"""Flat vectors, and symmetric matrices that are known by their products."""
