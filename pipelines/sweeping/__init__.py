"""The steps of a sweep: which trials there are, and running them until they are finished."""
