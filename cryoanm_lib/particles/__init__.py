"""Batches of particle images, and where they come from."""
