"""From images to posteriors: training, Fisher information, searches, peaks, exact lattices, refinement."""
