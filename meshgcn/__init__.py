"""Residual Chebyshev graph convolutions on brain surface meshes (Azcona et al., ShapeMI 2020)."""
