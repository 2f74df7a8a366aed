"""The same from a shell: a file for each command."""
