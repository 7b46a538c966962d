"""Weights of other programs: what is read from them and written for them, one file per program."""
