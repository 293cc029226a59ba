"""Settings: flag before environment before `config.toml` before default, and where each is from."""
