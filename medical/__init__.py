"""Generative and multimodal models of medical images: medXGAN explanations, AC-GAN, fusion, latent traversal."""
