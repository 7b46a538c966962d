"""Features of frozen weights, computed once and kept on the disk."""
