"""Whisper base from registry packages: content features for RVC, and speech recognition."""
