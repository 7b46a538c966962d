"""Models, their initialisation, cost and exchange formats."""
