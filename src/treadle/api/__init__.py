"""HTTP faces: parse, authorise, call a use case, render."""
