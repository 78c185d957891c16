"""What runs a batch: the loop and all that it reads, from the packed stream to the trace."""
