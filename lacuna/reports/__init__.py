"""Records in, figures and reports out; never a device array."""
