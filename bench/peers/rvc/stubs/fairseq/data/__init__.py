"""See ``dictionary``."""
