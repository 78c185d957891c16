"""Encoder families: one file per block shape. `exitkit.families` registers them."""
