"""A user's own folder as a data set."""
