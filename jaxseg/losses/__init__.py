"""Pure functions of arrays; each names its source."""
