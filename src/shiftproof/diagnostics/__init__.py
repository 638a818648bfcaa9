"""Diagnostics: what the theory of GENIE speaks of, measured in any training loop. The core needs torch and numpy."""
