"""Measures of audio: pure functions on arrays. ``whole.measure`` takes them all."""
