"""Energy-Based Transformers in JAX (arXiv 2507.02092)."""
