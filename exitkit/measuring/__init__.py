"""What a run takes and what it scores: the clock, and real runs over rows."""
