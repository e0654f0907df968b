"""weights2weights: the weight space of customised diffusion models (Dravid et al., 2024)."""
