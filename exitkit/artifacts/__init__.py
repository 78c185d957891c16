"""The folders that models and cascades are saved in: written, sealed, checked, read and told about."""
