"""The trainer's use cases: leases in, voices out, through a port to wherever stages run."""
