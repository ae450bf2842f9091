"""OpenStack's APIs: its names, shapes and status codes over the same use cases."""
