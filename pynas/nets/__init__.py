"""Networks: `load` finds models by name, `build` makes the torch module of a list of blocks, `zoo/` holds the published
ones as rows. Around them: `features` (backbones), `weights` (files), `export` (other runtimes), `timm_names`, `resnet`.

This package imports no torch of itself, so that the zoo can be read where torch is not installed.
"""
