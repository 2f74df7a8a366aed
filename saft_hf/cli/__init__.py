"""The same from a shell: a file a command."""
