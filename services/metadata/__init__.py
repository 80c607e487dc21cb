"""The record: jobs, audio, voices, identities. The only holder of database credentials."""
