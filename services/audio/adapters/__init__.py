"""What the audio service's ports stand for: metadata over gRPC, S3, measuring processes."""
