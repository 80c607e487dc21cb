"""The ``voxfleet`` command: the SDK for people and for shell scripts."""
