"""How the training state is divided among ranks, and the memory this takes."""
