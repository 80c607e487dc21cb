"""What runs inside Ray: the stages of a training, and the process around them. Nothing here imports Ray."""
