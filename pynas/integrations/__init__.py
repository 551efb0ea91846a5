"""pynas inside of other tools; each module imports its own."""
