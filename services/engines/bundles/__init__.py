"""Named sets of weights: what they hold, where they come from, and under which licence.

``manifest`` says what a bundle is, ``catalogue`` lists the known ones, ``pull`` and ``imports`` bring
one in, ``cache`` keeps one copy a node. Nothing here needs torch.
"""
