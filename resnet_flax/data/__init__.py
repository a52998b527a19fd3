"""Image sets of TFDS in memory, shuffled and augmented as functions of (seed, step)."""
