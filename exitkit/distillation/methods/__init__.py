"""The distillation methods that come with exitkit, one file each."""
