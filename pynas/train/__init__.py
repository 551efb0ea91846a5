"""Training: `run.train_model` trains in a directory of its own, `candidate.train_candidate` is what executors run.

This package, `config`, `recipe` and `log` import no torch; everything else here does.
"""
