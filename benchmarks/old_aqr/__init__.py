"""What was wrong with the maps of the published AQR, measured."""
