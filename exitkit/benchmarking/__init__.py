"""Scoring and timing policies."""
