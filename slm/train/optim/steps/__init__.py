"""The optimisers at work. `guarded` first: what a step may and may not do; then `shards`."""

from slm.train.optim.steps.guarded import evaluation_weights, final_weights, init_state, training_weights

__all__ = ["evaluation_weights", "final_weights", "init_state", "training_weights"]
