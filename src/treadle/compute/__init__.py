"""Instances: their model, their life cycle, the pass that carries it out."""
