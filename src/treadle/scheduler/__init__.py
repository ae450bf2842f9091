"""Ranks hosts for a request: filters, weighers, policies. It knows no database."""
