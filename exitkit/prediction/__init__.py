"""Answers for new inputs: reading, predicting, writing."""
