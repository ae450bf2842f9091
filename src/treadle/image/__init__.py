"""Images: where they come from, what is in them, which host has them."""
