"""What people read: tables, figures, one HTML page."""
