"""Every example in a docstring runs, with these names at hand."""

import jax
import matplotlib

matplotlib.use("Agg")
jax.config.update("jax_debug_key_reuse", True)  # law 7
