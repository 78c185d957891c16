"""Rows to train on and to score: where they come from, which are set aside, and their tokens."""
