"""How an image comes about: latents, projection, contrast transfer, noise, and the likelihood."""
