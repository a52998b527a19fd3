"""Image classification sets of TFDS, held in memory, shuffled and augmented as functions of (seed, step)."""
