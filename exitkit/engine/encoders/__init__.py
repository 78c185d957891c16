"""Encoder families: one file per block shape. `exitkit.families` registers them."""

from exitkit.engine.encoders import bilstm as bilstm  # so that transformers knows the family that only exitkit has
