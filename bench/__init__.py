"""Measures Treadle: see `bin/bench --help`. Both sides of every ratio come from the same run."""
