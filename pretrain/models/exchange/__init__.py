"""Weights of other programs, read and written; one file per program."""
