"""The audio service: uploads, and what is measured of them."""
