"""Recipes and policies against each other: `compare`."""
