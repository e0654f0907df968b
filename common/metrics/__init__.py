"""Measures of image quality and of distances between image distributions."""
