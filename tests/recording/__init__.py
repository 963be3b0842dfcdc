"""Records a terminal on a booted Debian: a flushed ruleset, and what the journal says. `make recording` runs it."""
