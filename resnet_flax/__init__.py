"""Plain and residual networks in JAX/Flax: the degradation experiment of He et al. (2015)."""
