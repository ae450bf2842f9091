"""Hosts that fail: finding out, switching them off for sure, building their instances elsewhere."""
