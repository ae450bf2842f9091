"""Networks as projects see them: today the one that every host offers, and ports made of rows."""
