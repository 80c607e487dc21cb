"""What the trainer and the inference service share about Ray: joining, calls, failures, nodes."""
