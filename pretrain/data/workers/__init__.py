"""Data processes: reading, decoding and collating samples."""
