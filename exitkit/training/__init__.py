"""Training exits: `train`, the trainer, and the recipes that come with exitkit."""
