"""Image sets of TFDS, shuffled and augmented as functions of (seed, step)."""
