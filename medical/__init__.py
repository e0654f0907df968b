"""Generative and multimodal models of medical images (medXGAN, AC-GAN, DeepCOVID-Fuse)."""
