"""Particles of others: from a table, a stack and a molecule to posteriors that were tested on a twin."""
