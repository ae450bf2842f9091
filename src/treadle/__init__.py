"""Treadle: a cloud fabric controller."""
