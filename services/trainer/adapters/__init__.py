"""What the trainer's ports stand for: Ray, metadata, the artefact store."""
