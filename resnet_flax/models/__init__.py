"""The networks of He et al. (2015), Sec. 3 and 4."""
