"""Who is next, and when: pure decisions, no clock, no database."""
