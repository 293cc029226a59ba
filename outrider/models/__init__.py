"""Model files: bounds checks, configurations, vocabularies, conversions."""
