"""Stands for what upstream's packages import and cannot be had; a folder of import roots."""
