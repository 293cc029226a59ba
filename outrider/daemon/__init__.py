"""What makes a server process a daemon: its log, its word to the service manager, new settings."""
