"""What each chapter asks for, as resources and tables."""
