"""Do the tests notice? Guarantees of the ledger are taken out one at a time, and a test must fail."""
