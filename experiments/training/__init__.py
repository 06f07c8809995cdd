"""Parts of `pitune train`."""
