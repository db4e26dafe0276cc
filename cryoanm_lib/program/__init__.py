"""The probabilistic program: prior, model, guide, and the objectives that train it."""
