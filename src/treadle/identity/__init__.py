"""Who may ask: users, projects, tokens, rules."""
