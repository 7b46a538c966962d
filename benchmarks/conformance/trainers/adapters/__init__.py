"""One adapter per trainer, as described in ``process.py``."""
