"""The parts of the Python API, which ``pipelines.api`` offers."""
