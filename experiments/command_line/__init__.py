"""The `pitune` command: subcommands, options, help and errors."""
