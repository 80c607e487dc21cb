"""What metadata's use cases need of a database, as Protocols."""
