"""NARS (FBNetV3): the paper's three stages, by name. `search.py` runs them."""
