"""Pages that come with the package. `bin/web` fills `vendor/`, which is no part of the source."""
