"""The clients as they are written, asynchronous; `scripts/sdk` makes `_sync` from them."""
