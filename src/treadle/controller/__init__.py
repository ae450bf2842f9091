"""The work engine: queue, lease, worker, watchdog. It knows no domain."""
