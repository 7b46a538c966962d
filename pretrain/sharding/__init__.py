"""How the training state is divided among ranks: one value answers every question that depends on it."""
