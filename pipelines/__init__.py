"""What happens between processes: each stage reads an artifact and writes an artifact, and is safe to run again."""
