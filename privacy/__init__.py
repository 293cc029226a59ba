"""What leaves the device, and how it is sealed."""
