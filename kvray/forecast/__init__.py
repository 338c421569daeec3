"""What a candidate will need and how fast it will be, before it is launched: bytes, a roofline, a measured device."""
