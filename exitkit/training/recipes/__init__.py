"""The recipes that come with exitkit, one file each."""
