"""gRPC as Voxfleet speaks it: one server shape, one client shape, one error model."""
