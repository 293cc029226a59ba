"""The cloud's side: one target model commits tokens for many devices."""
