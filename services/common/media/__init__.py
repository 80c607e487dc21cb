"""Audio in and out of files: sniff, decode, encode, resample, and the levels of what is heard.

numpy, PyAV and soxr only; nothing here imports torch. Import the modules by name.
"""
