"""Transport: the methods of the public and internal services that metadata serves."""
