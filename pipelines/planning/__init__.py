"""What a run will cost and need, computed before it starts."""
