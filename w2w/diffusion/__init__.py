"""Diffusion models with text conditioning: networks, text encoder, noising process, samplers."""
