"""RVC v2 as a library: preparation, training, retrieval index, conversion. Start at ``pipeline``."""
