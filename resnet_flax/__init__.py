"""Plain and residual networks in JAX/Flax: the degradation experiment of He et al. (2015)."""

__version__ = "0.1.0"
