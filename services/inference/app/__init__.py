"""Use cases of inference: the pools, streamed speech, leased jobs, bundles of weights, the engines' list."""
