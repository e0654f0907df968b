"""Idempotent generative networks (Shocher et al., ICLR 2024)."""
