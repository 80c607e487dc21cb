"""A jail for code that reads files nobody vouches for: pickles now, decoders next.

``running`` starts a child process for one file and watches it; ``child`` is that process; ``kernel`` is
what it asks of the kernel before it touches a byte; ``work`` is what runs in it. What it holds back on which
kernels stands in ``docs/reference/jail.md``.
"""
