"""Cascades: complete models in rising size, the larger ones only for rows that the smaller ones do not answer."""
