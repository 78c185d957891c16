"""Choosing the settings of a policy for a target."""
