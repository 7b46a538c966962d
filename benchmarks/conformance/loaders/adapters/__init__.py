"""One module per loader, used as its documentation shows; ``process`` describes what a module has."""
