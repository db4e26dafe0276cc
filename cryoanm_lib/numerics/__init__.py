"""Mathematics that knows of no molecule: rotations, Fourier grids, batching, random streams."""
