"""The parts of a Vision Transformer."""
