"""What a model is worth: likelihood bounds, the likelihood of the parallel sampler, baselines."""
