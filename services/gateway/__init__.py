"""The public API: identity, validation, fan-out. It keeps no state and knows no audio."""
