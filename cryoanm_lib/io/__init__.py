"""Files: tensors and records written whole or not at all, locks, and what made a result."""
