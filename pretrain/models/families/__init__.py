"""One module for each family of models: see ``registry``."""
