"""Networks: `build` makes the torch module of a list of blocks, `zoo/` holds the published ones as rows.

This package imports no torch of itself, so that the zoo can be read where torch is not installed.
"""
