"""What the method is compared with: OHEM and GHM."""
