"""Made from `_async` by `scripts/sdk`: change those, not these."""
