"""The stages around training: each reads artifacts and writes one, and is safe to run again."""
