"""Backbones and perceptual networks used by several methods."""
