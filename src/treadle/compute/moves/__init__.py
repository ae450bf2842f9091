"""Moves of running instances from host to host: a row, a plan and a pass of their own."""
