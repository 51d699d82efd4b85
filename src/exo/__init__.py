"""exo: one cluster out of unequal machines."""
