"""The audio service's use cases."""
