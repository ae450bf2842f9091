"""The capacity ledger: hosts, what they hold, what is free."""
