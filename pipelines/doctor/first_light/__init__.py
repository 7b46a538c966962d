"""``doctor --first-light``: what only a GPU can prove, measured in minutes."""
