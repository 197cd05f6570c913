"""The algorithms as functions of tensors: the ground floor, which knows nothing of the rest."""
