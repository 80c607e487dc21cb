"""The services of Voxfleet; each is a process, none imports another."""
