"""The filter inside other trainers than TRL's."""
