"""What can be asked for, how it is read, and what a request means for device, precision and threads."""
