"""What metadata keeps, as plain data."""
