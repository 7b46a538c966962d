"""Writes the job scripts of an installed product into a folder."""
