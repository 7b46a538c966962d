"""The experiment as strict, typed models; loading, overrides, provenance."""
