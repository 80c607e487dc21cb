"""What inference is plugged into: Ray, and metadata's catalogue."""
