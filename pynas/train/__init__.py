"""Training one candidate: `candidate.train_candidate` is the function executors run, the rest is what it is made of.

This package, `config` and `fetch` import no torch; everything else here does.
"""
